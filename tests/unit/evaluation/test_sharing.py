"""Media are shared out so that each has one part, whatever the launcher."""

import pytest

from ma2mba.errors import UserError
from ma2mba.evaluation.sharing import Part, choose_gpu, in_order


@pytest.mark.parametrize("of", [1, 2, 3, 10])
def test_each_medium_has_one_part(of):
    media = [f"v{k}" for k in range(7)]
    shares = [part.share(media) for part in Part(0, of).siblings()]
    assert sorted(medium for share in shares for medium in share) == media
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("text", "environment", "part"),
    [
        (None, {}, Part()),
        ("2/3", {"RANK": "1", "WORLD_SIZE": "4"}, Part(2, 3)),
        (None, {"RANK": "1", "WORLD_SIZE": "4"}, Part(1, 4)),
        (None, {"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, Part(3, 4)),
        (None, {"SLURM_PROCID": "1", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "2"}, Part(1, 2)),
        (None, {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "RANK": "5", "WORLD_SIZE": "8"}, Part(5, 8)),
        (None, {"RANK": "1"}, Part()),
    ],
)
def test_the_part_comes_from_the_option_or_the_launcher(text, environment, part):
    assert Part.choose(text, environment) == part


@pytest.mark.parametrize(
    ("text", "said"), [("2", "not a part"), ("a/b", "not a part"), ("4/4", "Use 0/4 to 3/4"), ("-1/4", "out of range")]
)
def test_a_wrong_part_is_refused(text, said):
    with pytest.raises(UserError, match=f"--part {text}: .*{said}"):
        Part.parse(text)


def test_a_wrong_rank_is_refused_with_its_variables():
    with pytest.raises(UserError, match="RANK=4, WORLD_SIZE=4: not a rank"):
        Part.choose(None, {"RANK": "4", "WORLD_SIZE": "4"})


def test_names_of_parts():
    assert Part().name("answers.jsonl") == "answers.jsonl"
    assert Part(1, 4).name("answers.jsonl") == "answers-1-of-4.jsonl"


@pytest.mark.parametrize(
    ("environment", "gpu"),
    [
        ({"LOCAL_RANK": "3"}, "3"),
        ({"SLURM_LOCALID": "5"}, "1"),
        ({"LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "6,2"}, "2"),
        ({"LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "6"}, "6"),
        ({"LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": ""}, ""),
        ({}, None),
    ],
)
def test_a_rank_sees_its_own_gpu(environment, gpu, tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidia3", "nvidiactl"):
        (tmp_path / name).touch()
    choose_gpu(environment, tmp_path)
    assert environment.get("CUDA_VISIBLE_DEVICES") == gpu


def test_keys_stand_in_the_order_of_their_first_places():
    assert list(in_order("bab").items()) == [("b", [0, 2]), ("a", [1])]
