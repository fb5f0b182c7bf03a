"""The code of a model folder, loaded by transformers alone, against this project's own model.

Measured in fp32 over 60 random prompts, where logits reach 5.6: at most 1.2e-7 apart in one call, 2.4e-6 in a padded
batch, 3.9e-6 after 30 single steps. Loss and gradients of one call are equal bit for bit.
"""

import copy
import json
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoModelForMultimodalLM

from ma2mba.inference.interleaved import Interleaved, with_frames
from ma2mba.model.encoded import Encoded
from ma2mba.model.hf.config import parse_hf
from ma2mba.model.mamba2 import Mamba2Layer
from ma2mba.model.mamba2_config import Mamba2Config
from tests.unit.model.hf_folder import (
    END,
    PER_FRAME,
    SIZE,
    VOCABULARY,
    Prompt,
    batch,
    build_model,
    load,
    own_logits,
    prompt,
    worst,
    write_folder,
)

PROMPTS = [
    prompt(1, 5, 4, 7),
    prompt(2, 3, 1, 4),
    prompt(3, 20),
    prompt(4, 2, 3, 5, 2, 1),
    prompt(5, 0, 2, 1),
    prompt(6, 1),
]


def code_of(model) -> ModuleType:
    """The module of the code file that transformers copied."""
    return sys.modules[type(model).__module__]


def test_it_loads_under_both_names_with_the_parameters_of_this_project(own, hf_folder):
    for auto in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
        model, about = auto.from_pretrained(hf_folder, trust_remote_code=True, output_loading_info=True)
        assert not any(about.values()), about
        assert type(model).__name__ == "VideoMa2mbaForConditionalGeneration"
        assert type(model).__module__.startswith("transformers_modules")
        assert {n: p.shape for n, p in model.state_dict().items()} == {n: p.shape for n, p in own.state_dict().items()}
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert (model.input_modalities, model._is_stateful, model.main_input_name) == (
            ("video", "text"),
            True,
            "input_ids",
        )


def test_the_configuration_has_the_names_of_transformers(hf_folder):
    config = AutoConfig.from_pretrained(hf_folder, trust_remote_code=True)
    text = config.get_text_config()
    assert text is config.get_text_config(decoder=True) is config.text_config
    assert (text.hidden_size, text.num_hidden_layers, text.vocab_size) == (32, 3, 48)
    assert (config.vision_config.image_size, config.tokens_per_frame) == (SIZE, PER_FRAME)
    saved = config.to_dict()
    assert saved["text_config"]["vocab_size"] == VOCABULARY
    assert saved["format_version"] == 2
    again = type(config).from_dict(saved)
    assert again.to_dict() == saved
    text = copy.deepcopy(again.text_config)
    text.vocab_size = 50
    assert (text.vocab_size, text.to_dict()["vocab_size"]) == (50, 50)


@pytest.mark.parametrize("asked", PROMPTS)
def test_logits_are_those_of_this_project(own, hf_model, asked):
    with torch.no_grad():
        output = hf_model(**asked.given)
    assert worst(output.logits[0], own_logits(own, asked)) <= 1e-5
    assert output.past_key_values.get_seq_length() == asked.ids_1T.shape[1]


@pytest.mark.parametrize(
    "sizes",
    [
        {"ngroups": 2},
        {"d_conv": 2, "ssd_block": 7},
        {"expand": 3, "headdim": 4, "d_conv": 1},
        {"vocab_size": 48},
        {"pad_vocab_size_multiple": 1, "norm_eps": 1e-3},
        {"tie_embeddings": False},
    ],
)
def test_other_sizes(sizes, modules_cache, tmp_path):
    own = build_model(**sizes)
    model = load(write_folder(own, tmp_path / "model"))
    asked = PROMPTS[3]
    with torch.no_grad():
        output = model(**asked.given)
        assert worst(output.logits[0], own_logits(own, asked)) <= 1e-5
        more = torch.tensor([[3, 1, 4, 1, 5]])
        steps = [model(id[None], past_key_values=output.past_key_values).logits[0, 0] for id in more.T]
    longer = Prompt(torch.cat([asked.ids_1T, more], dim=1), asked.frames_N3HW)
    assert worst(torch.stack(steps), own_logits(own, longer)[-5:]) <= 1e-5


@pytest.mark.parametrize("chunk", [64, 20, 7])
def test_one_row_is_cut_where_ask_cuts_it(hf_model, chunk):
    """Between frames, and after the last frame: what the states are rounded to is then the same."""
    encoded = Encoded(list(range(9)), frame_positions=[2] * 11 + [5] * 3)
    ids_S, visual_S = with_frames(encoded.token_ids, encoded.frame_positions, PER_FRAME)
    head = Interleaved(
        Encoded(encoded.token_ids[:5], frame_positions=encoded.frame_positions), PER_FRAME, np.arange(14)
    )
    expected = [stop for _, stop in head.chunks(chunk)]
    while expected[-1] < len(ids_S):
        expected.append(min(expected[-1] + chunk, len(ids_S)))
    frames = sys.modules[type(hf_model).__module__].Frames(torch.empty(14), visual_S[None], PER_FRAME, lambda f: f)
    assert frames.cuts(len(ids_S), chunk) == [0, *expected]


def test_fp64_logits_are_the_same_to_13_digits(own, hf_folder):
    own, model, asked = copy.deepcopy(own).double(), load(hf_folder).double(), PROMPTS[0]
    with torch.no_grad():
        assert worst(model(**asked.given).logits[0], own_logits(own, asked)) < 1e-11


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("chunk", [4096, 16])
def test_a_batch_of_unequal_prompts_equals_single_prompts(own, hf_model, side, chunk, monkeypatch):
    monkeypatch.setitem(code_of(hf_model).CHUNK_TOKENS, "cpu", chunk)
    given = batch(PROMPTS, side)
    with torch.no_grad():
        output = hf_model(**given)
        last = hf_model(**given, logits_to_keep=1).logits
        places = torch.tensor([0, 5, 20, -2])
        assert worst(hf_model(**given, logits_to_keep=places).logits, output.logits[:, places]) <= 1e-5
    for row, asked in enumerate(PROMPTS):
        expected = own_logits(own, asked)
        assert worst(output.logits[row][given["attention_mask"][row].bool()], expected) <= 1e-5
        assert worst(last[row, 0], expected[-1]) <= 1e-5
        alone = hf_model(**asked.given).past_key_values
        for states, single in ((output.past_key_values.conv, alone.conv), (output.past_key_values.ssm, alone.ssm)):
            assert max(worst(s[row], one[0]) for s, one in zip(states, single, strict=True)) <= 1e-5


def test_padding_between_tokens_and_after_a_cache_is_skipped(own, hf_model):
    asked = PROMPTS[0]
    tokens = asked.ids_1T.shape[1]
    places = torch.tensor([1, 2, *range(4, tokens - 3), tokens, tokens + 3, tokens + 5])
    ids, mask = torch.full((1, tokens + 7), END), torch.zeros(1, tokens + 7, dtype=torch.long)
    ids[:, places], mask[:, places] = asked.ids_1T[:, : len(places)], 1
    rest = asked.ids_1T[:, len(places) :]
    expected = own_logits(own, asked)
    with torch.no_grad():
        output = hf_model(ids, pixel_values_videos=asked.frames_N3HW, attention_mask=mask)
        assert worst(output.logits[0][places], expected[: len(places)]) <= 1e-5
        for token in rest.T:  # one token after padding of its own
            padded, only = torch.tensor([[END, int(token)]]), torch.tensor([[0, 1]])
            mask = torch.cat([mask, only], dim=1)
            output = hf_model(padded, attention_mask=mask, past_key_values=output.past_key_values)
    assert worst(output.logits[0, -1], expected[-1]) <= 1e-5


@pytest.mark.parametrize("chunk", [16, 23, 37])
def test_chunks_give_the_logits_of_one_call_and_bound_what_is_computed_at_once(hf_model, chunk, monkeypatch):
    asked, tokens, frames = prompt(7, 3, 40, 9), [], []
    with torch.no_grad():
        expected = hf_model(**asked.given).logits
        monkeypatch.setitem(code_of(hf_model).CHUNK_TOKENS, "cpu", chunk)
        hooks = [
            hf_model.language_model.backbone.layers[0].register_forward_pre_hook(
                lambda m, args: tokens.append(args[0].shape[1])
            ),
            hf_model.vision.register_forward_pre_hook(lambda m, args: frames.append(len(args[0]))),
        ]
        output = hf_model(**asked.given, output_hidden_states=True)
        for hook in hooks:
            hook.remove()
    assert worst(output.logits, expected) <= 1e-5
    assert max(tokens) <= chunk
    assert sum(tokens) == asked.ids_1T.shape[1]
    assert sum(frames) == 40, "a frame is encoded twice, or not at all"
    assert max(frames) <= chunk // PER_FRAME + 1
    assert worst(hf_model.language_model.logits(output.hidden_states[-1]), expected) <= 1e-5
    assert len(output.hidden_states) == 4


def test_frames_are_encoded_in_blocks(hf_model):
    asked, frames = prompt(8, 1, 70, 1), []
    hook = hf_model.vision.register_forward_pre_hook(lambda m, args: frames.append(len(args[0])))
    hf_model(**asked.given)
    hook.remove()
    assert frames == [32, 32, 6]


def test_logits_are_computed_where_they_are_asked_for(hf_model):
    asked, counts = PROMPTS[0], []
    hook = hf_model.language_model.lm_head.register_forward_pre_hook(lambda m, args: counts.append(args[0].shape[1]))
    with torch.no_grad():
        every = hf_model(**asked.given).logits
        assert worst(hf_model(**asked.given, logits_to_keep=3).logits, every[:, -3:]) <= 1e-5
        places = torch.tensor([2, 40, -1])
        assert worst(hf_model(**asked.given, logits_to_keep=places).logits, every[:, places]) <= 1e-5
    hook.remove()
    assert counts == [every.shape[1], 3, 3]


def test_the_answers_of_a_tuple_are_those_of_an_output(hf_model):
    output, plain = (hf_model(**PROMPTS[1].given, return_dict=choice) for choice in (True, False))
    assert isinstance(plain, tuple)
    assert torch.equal(plain[0], output.logits)


def test_features_and_placeholders(hf_model):
    asked = PROMPTS[0]
    features = hf_model.get_video_features(asked.frames_N3HW).pooler_output
    assert features.shape == (4, PER_FRAME, 32)
    embeds = hf_model.get_input_embeddings()(asked.ids_1T.clamp(max=VOCABULARY - 1))
    mask = hf_model.get_placeholder_mask(asked.ids_1T, embeds, features)
    assert mask.shape == embeds.shape
    embeds = embeds.masked_scatter(mask, features)
    assert worst(hf_model(inputs_embeds=embeds).logits, hf_model(**asked.given).logits) <= 1e-5
    with pytest.raises(ValueError, match="36 places of visual tokens"):
        hf_model.get_placeholder_mask(asked.ids_1T, embeds, features[:3])


def test_bf16_keeps_what_this_project_keeps_in_fp32(own, hf_folder, tmp_path):
    model = load(hf_folder, dtype=torch.bfloat16)
    kept = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert kept == {n for n, _ in own.named_parameters() if n.rsplit(".", 1)[-1] in ("A_log", "dt_bias", "D")}
    values = dict(own.named_parameters())
    assert all(torch.equal(dict(model.named_parameters())[name], values[name]) for name in kept)
    new = AutoModelForImageTextToText.from_config(model.config, dtype=torch.bfloat16, trust_remote_code=True)
    assert {name for name, p in new.named_parameters() if p.dtype == torch.float32} == kept
    assert model._keep_in_fp32_modules_strict == {"mixer.A_log", "mixer.dt_bias", "mixer.D"}
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved", dtype="auto")
    assert again.dtype == torch.bfloat16
    assert {name for name, p in again.named_parameters() if p.dtype == torch.float32} == kept
    expected = own_logits(own, PROMPTS[0])
    with torch.no_grad():
        found = model(**PROMPTS[0].given).logits[0].float()
    assert worst(found, expected) < 1.5 * worst(own_logits(copy.deepcopy(own).bfloat16(), PROMPTS[0]).float(), expected)


def test_save_and_load_again(own, hf_model, tmp_path):
    hf_model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.state_dict().keys() == own.state_dict().keys()
    assert all(torch.equal(t, own.state_dict()[name]) for name, t in again.state_dict().items())
    assert again.config.to_dict()["text_config"]["vocab_size"] == VOCABULARY
    assert torch.equal(again(**PROMPTS[0].given).logits, hf_model(**PROMPTS[0].given).logits)
    assert not (tmp_path / "saved" / "modeling_video_ma2mba.py").read_text().count("import ma2mba")


def test_a_head_of_its_own_is_saved_and_loaded(modules_cache, tmp_path):
    own = build_model(tie_embeddings=False)
    model = load(write_folder(own, tmp_path / "model"))
    assert model.config.get_text_config().tie_word_embeddings is False
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    model.tie_weights()
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    for one in (model, again):
        assert all(torch.equal(t, own.state_dict()[name]) for name, t in one.state_dict().items())
        with torch.no_grad():
            assert worst(one(**PROMPTS[0].given).logits[0], own_logits(own, PROMPTS[0])) <= 1e-5
    again.resize_token_embeddings(52, mean_resizing=False)
    assert again(**PROMPTS[0].given).logits.shape[-1] == 52


def test_the_configuration_says_once_whether_the_head_is_the_embedding(hf_folder):
    kind = type(AutoConfig.from_pretrained(hf_folder, trust_remote_code=True))
    assert kind(text_config={"d_model": 32}, tie_word_embeddings=False).text_config.tie_embeddings is False
    with pytest.raises(ValueError, match=r"tie_word_embeddings is True, but text_config.tie_embeddings is False"):
        kind(text_config={"tie_embeddings": False})


def test_decay_rates_of_a_new_model_are_drawn_from_the_range_that_its_configuration_names(hf_folder, tmp_path):
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(hf_folder, trust_remote_code=True)
    config.text_config.d_model, config.text_config.A_log_uniform = 512, (0.02, 2.0)
    model = AutoModelForImageTextToText.from_config(config, trust_remote_code=True)
    rates = [layer.mixer.A_log.detach().exp() for layer in model.language_model.backbone.layers]
    own = Mamba2Layer(Mamba2Config(d_model=512, n_layer=1, headdim=8, A_log_uniform=(0.02, 2.0))).mixer.A_log.exp()
    for rates_H in (*rates, own.detach()):
        assert 0.02 <= float(rates_H.min()) < 0.05
        assert 1 < float(rates_H.max()) <= 2
        assert 0.1 < float(rates_H.median()) < 0.4  # the middle of a log-uniform draw is 0.2, of a uniform one 1
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["text_config"]
    assert saved["A_log_uniform"] == [0.02, 2.0]
    read = parse_hf(json.loads((tmp_path / "config.json").read_text())).text_config
    assert isinstance(read, Mamba2Config)
    assert read.A_log_uniform == (0.02, 2.0)


def test_a_new_model_is_initialised_as_this_project_does(hf_folder):
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(hf_folder, trust_remote_code=True)
    config.text_config.d_model = 512
    model = AutoModelForImageTextToText.from_config(config, trust_remote_code=True)
    mixer = model.language_model.backbone.layers[0].mixer
    step = torch.nn.functional.softplus(mixer.dt_bias.detach())
    assert 1e-3 <= float(step.min()) < 5e-3
    assert 5e-2 < float(step.max()) <= 0.1 + 1e-6
    assert float(mixer.A_log.detach().exp().min()) >= 1
    assert 15 < float(mixer.A_log.detach().exp().max()) <= 16
    assert torch.equal(mixer.D, torch.ones(128))
    assert float(model.language_model.backbone.embedding.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    expected = 1 / (3 * 3 * 1024) ** 0.5  # uniform up to 1/sqrt(width), over the square root of the depth
    assert float(mixer.out_proj.weight.detach().std()) == pytest.approx(expected, rel=0.05)
    assert float(mixer.in_proj.weight.detach().std()) == pytest.approx(1 / (3 * 512) ** 0.5, rel=0.05)


def test_missing_weights_are_initialised(own, hf_folder, tmp_path):
    part = write_folder(own, tmp_path / "model")
    tensors = load_file(part / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if not n.startswith("projector.")}, part / "model.safetensors")
    model, about = AutoModelForImageTextToText.from_pretrained(part, trust_remote_code=True, output_loading_info=True)
    assert {name.split(".")[0] for name in about["missing_keys"]} == {"projector"}
    assert 0.05 < float(model.projector[0].weight.detach().std()) < 0.5
    assert torch.equal(model.language_model.backbone.embedding.weight, own.language_model.backbone.embedding.weight)


def test_a_resized_vocabulary_can_be_saved(hf_model, tmp_path):
    model = copy.deepcopy(hf_model)
    model.resize_token_embeddings(52, mean_resizing=False)
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again(**PROMPTS[0].given).logits.shape[-1] == again.config.get_text_config().vocab_size == 52


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values_videos": torch.zeros(3, 3, SIZE, SIZE, dtype=torch.uint8)}, "has 3 frames of 9 tokens"),
        ({"pixel_values_videos": None}, "has 0 frames of 9 tokens"),
        ({"pixel_values_videos": torch.zeros(4, 3, SIZE, SIZE)}, "torch.float32 .* do not rescale or normalise"),
        ({"pixel_values_videos": torch.zeros(4, 3, 8, 8, dtype=torch.uint8)}, r"not torch.uint8 \(frames, 3, 84, 84\)"),
        ({"attention_mask": torch.ones(1, 3)}, r"attention_mask has the shape \(1, 3\)"),
        ({"inputs_embeds": torch.zeros(1, 2, 32)}, "input_ids or inputs_embeds"),
        ({"output_attentions": True}, "no attention between tokens"),
        ({"pixel_values": torch.zeros(1, 3, SIZE, SIZE)}, "Give pictures as frames"),
    ],
)
def test_wrong_inputs_are_refused(hf_model, change, message):
    with pytest.raises(ValueError, match=message):
        hf_model(**(PROMPTS[0].given | change))


def test_a_cache_of_another_kind_or_of_other_rows_is_refused(hf_model):
    with pytest.raises(TypeError, match="is a DynamicCache"):
        hf_model(**PROMPTS[0].given, past_key_values=transformers.DynamicCache())
    cache = hf_model(**PROMPTS[0].given).past_key_values
    with pytest.raises(ValueError, match="past_key_values has 1 rows, and the tokens have 2"):
        hf_model(torch.tensor([[1], [2]]), past_key_values=cache)
    with pytest.raises(NotImplementedError, match="cannot go back"):
        cache.crop(3)


def test_a_model_with_other_layers_is_refused(hf_folder):
    config = AutoConfig.from_pretrained(hf_folder, trust_remote_code=True)
    for part, key in ((config.text_config, "layer"), (config.vision_config, "encoder")):
        with pytest.raises(ValueError, match=f"{key} is 'other'.*Load it with ma2mba"):
            type(part)(**{key: "other"})


def test_layers_on_several_devices_and_on_disk_give_the_same_logits(hf_folder, hf_model, tmp_path):
    pytest.importorskip("accelerate", reason="device_map needs accelerate")
    places = {
        "vision": "disk",
        "projector": "cpu",
        "language_model.backbone.embedding": "cpu",
        "language_model.backbone.layers.0": "disk",
        "language_model.backbone.layers.1": "cpu",
        "language_model.backbone.layers.2": "disk",
        "language_model.backbone.norm_f": "disk",
        "language_model.lm_head": "cpu",
    }
    for device_map in ("auto", places):
        model = load(hf_folder, device_map=device_map, offload_folder=tmp_path)
        for asked in PROMPTS:
            assert worst(model(**asked.given).logits, hf_model(**asked.given).logits) <= 1e-5
