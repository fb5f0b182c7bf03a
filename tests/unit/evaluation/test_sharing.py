"""Media are shared out so that each has one part, whatever the launcher."""

import pytest

from ma2mba.errors import UserError
from ma2mba.evaluation.sharing import Part, in_order, local_rank


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


def test_names_and_devices_of_parts():
    assert Part().name("answers.jsonl") == "answers.jsonl"
    assert Part(1, 4).name("answers.jsonl") == "answers-1-of-4.jsonl"
    assert [local_rank({"LOCAL_RANK": "3"}), local_rank({"SLURM_LOCALID": "2"}), local_rank({})] == [3, 2, 0]


def test_keys_stand_in_the_order_of_their_first_places():
    assert list(in_order("bab").items()) == [("b", [0, 2]), ("a", [1])]
