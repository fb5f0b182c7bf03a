"""Ray Serve starts a server for each GPU. Most tests need Ray, which is an extra."""

import importlib
import sys

import pytest

from ma2mba.errors import UserError


def test_without_ray_the_remedy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "ma2mba.serving.ray_app", raising=False)
    with pytest.raises(UserError, match=r'pip install "ma2mba\[serve,ray\]"'):
        importlib.import_module("ma2mba.serving.ray_app")


@pytest.fixture(scope="module")
def ray_app():
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed (extra `ray`)")
    return importlib.import_module("ma2mba.serving.ray_app")


def test_arguments_are_settings(ray_app, tmp_path):
    settings = ray_app.read_settings({"model": str(tmp_path), "max_video_hours": "2.5", "domains": "a.org,.b.org"})
    assert settings.model == tmp_path
    assert (settings.max_video_hours, settings.domains) == (2.5, ("a.org", ".b.org"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "model: is missing"),
        ({"model": "m", "port": "80"}, "port: unknown"),
        ({"model": "m", "places": "many"}, "places: "),
        ({"model": "m", "gpus": "two"}, "gpus: two is not a number"),
    ],
)
def test_wrong_arguments_are_named(ray_app, given, says):
    with pytest.raises(UserError, match=says):
        ray_app.build(given)


def test_a_replica_has_one_gpu_and_strict_affinity(ray_app, tmp_path):
    for gpus, replicas in (("4", 4), ("1", 1), ("0", 1)):
        deployment = ray_app.build({"model": str(tmp_path), "gpus": gpus})._bound_deployment
        assert deployment.num_replicas == replicas
        assert deployment.ray_actor_options["num_gpus"] == min(int(gpus), 1)
