"""The frames sampled of random files are those that ffmpeg shows, or the file is rejected for a reason that is true."""

from tests.unit.video.differential import compare, table

FILES = 5
"""Files in each round: `make fuzz` compares 1,000."""


def test_no_frame_differs_without_a_word(rounds, tmp_path):
    outcomes = []
    for number, rng in enumerate(rounds):
        for file in range(FILES):
            folder = tmp_path / f"{number}-{file}"
            folder.mkdir()
            outcome = compare(rng, folder)
            assert not outcome.silent, outcome
            assert not outcome.untrue, outcome
            for path in folder.iterdir():
                path.unlink()
            outcomes.append(outcome)
    print(table(outcomes))
