"""`generate` of transformers with a model folder's own code: greedy, beams, sampling, batches, and conversations."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import LogitsProcessor

from tests.unit.model.hf_folder import (
    END,
    VOCABULARY,
    Prompt,
    batch,
    build_model,
    load,
    own_answer,
    own_logits,
    prompt,
    worst,
    write_folder,
)

PROMPTS = [prompt(seed, *parts) for seed, parts in enumerate(((5, 4, 7), (3, 1, 4), (20,), (2, 3, 5, 2, 1)))]
TOKENS = 12


def answer(model, given, **options):
    """Return the written tokens of each row."""
    options = {"max_new_tokens": TOKENS, "do_sample": False} | options
    given = {"attention_mask": torch.ones_like(given["input_ids"])} | given
    return model.generate(**given, **options)[:, given["input_ids"].shape[1] :].tolist()


def up_to_end(tokens):
    return tokens[: tokens.index(END) + 1] if END in tokens else tokens


@pytest.mark.parametrize("asked", PROMPTS)
def test_greedy_tokens_are_those_of_this_project(own, hf_model, asked):
    expected = own_answer(own, asked, TOKENS)
    assert len(set(expected)) > 2
    for use_cache in (True, False):
        assert answer(hf_model, asked.given, use_cache=use_cache) == [expected]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_writes_what_single_prompts_write(own, hf_model, side):
    found = answer(hf_model, batch(PROMPTS, side))
    assert [up_to_end(row) for row in found] == [own_answer(own, asked, TOKENS) for asked in PROMPTS]


BEAMS = {"num_beams": 4, "num_return_sequences": 3}


@pytest.mark.parametrize("options", [{}, {"length_penalty": 2.0, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2}])
def test_beams_are_those_of_a_model_without_cache(hf_model, options):
    for asked in PROMPTS:
        expected = answer(hf_model, asked.given, **BEAMS, **options, use_cache=False)
        assert answer(hf_model, asked.given, **BEAMS, **options) == expected
        assert len({tuple(row) for row in expected}) == 3


def test_beams_of_a_padded_batch_are_those_of_single_prompts(hf_model):
    single = [up_to_end(row) for asked in PROMPTS for row in answer(hf_model, asked.given, **BEAMS)]
    for use_cache in (True, False):
        found = answer(hf_model, batch(PROMPTS, "left"), **BEAMS, use_cache=use_cache)
        assert [up_to_end(row) for row in found] == single


def test_equal_prompts_and_their_frames_are_read_once(hf_model):
    asked, rows, frames = PROMPTS[0], [], []
    hooks = [
        hf_model.language_model.backbone.layers[0].register_forward_pre_hook(lambda _, x: rows.append(x[0].shape[:2])),
        hf_model.vision.register_forward_pre_hook(lambda _, x: frames.append(len(x[0]))),
    ]
    answer(hf_model, asked.given, num_beams=5, max_new_tokens=4, eos_token_id=None)
    for hook in hooks:
        hook.remove()
    assert frames == [4]
    *prompt, first, second, third = rows
    assert {shape[0] for shape in prompt} == {1}
    assert sum(shape[1] for shape in prompt) == asked.ids_1T.shape[1]
    assert first == second == third == (5, 1)


def test_sampling_repeats_with_a_seed_and_never_leaves_the_vocabulary(hf_model):
    asked, options = PROMPTS[0], {"do_sample": True, "temperature": 50.0, "top_k": 0, "num_return_sequences": 40}
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(answer(hf_model, asked.given, **options))
    assert found[0] == found[1] != found[2]
    seen = {token for rows in found for row in rows for token in row}
    assert seen == set(range(VOCABULARY)), "padding of the vocabulary was written, or a token never is"


def test_scores_have_the_columns_that_transformers_expects(hf_model):
    options = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 5, "do_sample": False}
    beams = hf_model.generate(**PROMPTS[0].given, **options, num_beams=3)
    each = hf_model.compute_transition_scores(beams.sequences, beams.scores, beams.beam_indices)
    length = (each < 0).sum(1)
    assert float(each.sum() / length) == pytest.approx(float(beams.sequences_scores), rel=1e-5)


class LookUp(LogitsProcessor):
    """Reads the score of every id of the prompt, as older repetition penalties of transformers do."""

    def __call__(self, input_ids, scores):
        assert scores.gather(1, input_ids).shape == input_ids.shape
        return scores


def test_a_vocabulary_without_room_for_the_place_of_a_frame(modules_cache, tmp_path):
    """All 35 columns belong to tokens."""
    own = build_model(pad_vocab_size_multiple=1)
    model = load(write_folder(own, tmp_path / "model"))
    asked = PROMPTS[0]
    assert answer(model, asked.given) == [own_answer(own, asked, TOKENS)]
    options = {"repetition_penalty": 1.5, "no_repeat_ngram_size": 3, "num_beams": 2, "logits_processor": [LookUp()]}
    assert max(answer(model, asked.given, **options)[0]) < VOCABULARY


def test_a_conversation_goes_on_from_its_cache(own, hf_model):
    asked = PROMPTS[0]
    first = hf_model.generate(**asked.given, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    assert first.past_key_values.get_seq_length() == first.sequences.shape[1] - 1
    longer = torch.cat([first.sequences, prompt(9, 2, 2, 3).ids_1T], dim=1)
    frames = torch.cat([asked.frames_N3HW, prompt(9, 2, 2, 3).frames_N3HW])
    expected = own_answer(own, Prompt(longer, frames), TOKENS)
    for given in (frames, frames[4:]):  # all frames, as a processor makes them of the conversation, or the new ones
        cache = copy.deepcopy(first.past_key_values)
        inputs = {"input_ids": longer, "pixel_values_videos": given, "past_key_values": cache}
        assert answer(hf_model, inputs) == [expected]
    inputs["past_key_values"] = copy.deepcopy(first.past_key_values)
    torch.manual_seed(0)
    several = answer(hf_model, inputs, num_return_sequences=3, num_beams=3)
    assert several == answer(
        hf_model, {"input_ids": longer, "pixel_values_videos": frames}, num_return_sequences=3, num_beams=3
    )


def test_rows_of_a_cache_can_be_chosen_and_repeated(own, hf_model):
    given = batch(PROMPTS[:2], "left")
    with torch.no_grad():
        cache = hf_model(**given).past_key_values
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([3, 0]))
        found = hf_model(torch.tensor([[7], [8]]), past_key_values=cache).logits[:, 0]
    for row, (asked, token) in enumerate(((PROMPTS[1], 7), (PROMPTS[0], 8))):
        longer = Prompt(torch.cat([asked.ids_1T, torch.tensor([[token]])], dim=1), asked.frames_N3HW)
        assert worst(found[row], own_logits(own, longer)[-1]) <= 1e-5
    cache.reset()
    assert (cache.get_seq_length(), cache.rows, len(cache)) == (0, 0, 3)


def test_embedded_prompts(own, hf_model):
    asked = PROMPTS[2]
    embeds = hf_model.get_input_embeddings()(asked.ids_1T)
    found = hf_model.generate(inputs_embeds=embeds, max_new_tokens=TOKENS, do_sample=False)
    assert found[0].tolist() == own_answer(own, asked, TOKENS)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("assistant_model", "model"),
        ("prompt_lookup_num_tokens", 2),
        ("penalty_alpha", 0.6),
        ("dola_layers", "low"),
        ("cache_implementation", "static"),
        ("prefill_chunk_size", 8),
    ],
)
def test_modes_that_a_recurrent_model_cannot_have_are_refused(hf_model, option, value):
    with pytest.raises(ValueError, match=f"{option} is unsupported: .*Leave it out"):
        answer(hf_model, PROMPTS[2].given, **{option: hf_model if value == "model" else value})


ALONE = """
import json, sys

class Blocked:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in ("ma2mba", "data_prep", "tests"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import torch
from transformers import AutoModelForMultimodalLM

model = AutoModelForMultimodalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
given = torch.load(sys.argv[2])
written = model.generate(**given, max_new_tokens=12, do_sample=False)[:, given["input_ids"].shape[1] :]
assert not [name for name in sys.modules if name.split(".")[0] in ("ma2mba", "data_prep", "mamba_ssm")]
print(json.dumps(written.tolist()))
"""


def test_it_runs_where_this_package_is_not_installed(own, hf_folder, tmp_path):
    torch.save(PROMPTS[0].given, tmp_path / "given.pt")
    away = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(
        [sys.executable, "-c", ALONE, str(hf_folder), str(tmp_path / "given.pt")],
        cwd=tmp_path,
        env=away | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout.splitlines()[-1]) == [own_answer(own, PROMPTS[0], TOKENS)]
