"""The parameters of a chat completion: which have an effect, which are ignored, and which are refused."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ma2mba.errors import UserError
from ma2mba.inference.sampling import SEEDS, Sampling
from ma2mba.serving.api.body import validate
from ma2mba.serving.errors import Refused
from ma2mba.text import brief

IGNORED = {
    *("cache_salt", "metadata", "moderation", "parallel_tool_calls", "prediction", "priority", "prompt_cache_key"),
    *("prompt_cache_options", "prompt_cache_retention", "request_id", "safety_identifier", "service_tier", "store"),
    *("user",),
}
"""Parameters that change no answer: what a client notes about its request, and hints about speed."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "best_of": (1,),
    "continue_final_message": (False,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
}
"""Parameters that this server does not have, with the values that ask for nothing. null asks for nothing too."""
DEFAULT_TOKENS = 256
STOPS, STOP_LETTERS, ALTERNATIVES = 16, 256, 20

Positive = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class Completion(Strict):
    """A request for a chat completion, with the parameters that have an effect."""

    model: str
    messages: list[dict[str, Any]]
    n: Positive | None = None
    seed: Annotated[int, Field(ge=-SEEDS // 2, lt=SEEDS)] | None = None
    stop: Any = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=ALTERNATIVES)] | None = None
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    repetition_stop: bool | None = None
    so_far: bool | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether the last event of a stream holds the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


def parse_completion(body: dict[str, Any], model: str, most_answers: int) -> Completion:
    """Return a request's parameters. Raise Refused for a wrong one, and 404 for another model."""
    for name, value in body.items():
        if name in NEUTRAL and value is not None and value not in NEUTRAL[name]:
            raise Refused(
                f"{name}: {brief(value)} would change the answer, and this server does not support it. Leave it out",
                400,
                "unsupported_parameter",
                name,
            )
    wanted = validate(Completion, {name: body[name] for name in body if name not in IGNORED and name not in NEUTRAL})
    require_model(wanted.model, model)
    if wanted.n and wanted.n > most_answers:
        raise Refused(f"n: {wanted.n} answers are too many. Use {most_answers} or fewer", 400, "invalid_value", "n")
    if wanted.top_logprobs and not wanted.logprobs:
        raise Refused("top_logprobs: needs logprobs: true. Give both", 400, "invalid_value", "top_logprobs")
    if wanted.stream_options and not wanted.stream:
        raise Refused("stream_options: needs stream: true. Give both", 400, "invalid_value", "stream_options")
    return wanted


def require_model(name: str, model: str) -> None:
    """Raise Refused (404) unless a name is the model's."""
    if name != model:
        raise Refused(f"model: {brief(name)} is not served here. Use {model!r}", 404, "model_not_found", "model")


def sampling_of(wanted: Completion, most_tokens: int) -> Sampling:
    """Return how the answers are written. Raise Refused for a value out of range."""
    tokens = wanted.max_completion_tokens or wanted.max_tokens or DEFAULT_TOKENS
    stop = _stops(wanted.stop)
    try:
        return Sampling(
            temperature=wanted.temperature,
            top_p=1.0 if wanted.top_p is None else wanted.top_p,
            top_k=0 if wanted.top_k in (None, -1) else wanted.top_k,
            min_p=wanted.min_p or 0.0,
            seed=None if wanted.seed is None else wanted.seed % SEEDS,
            max_tokens=min(tokens, most_tokens),
            stop=stop,
            repetition_stop=bool(wanted.repetition_stop),
            logprobs=bool(wanted.logprobs),
        )
    except UserError as error:
        raise Refused(str(error), 400, "invalid_value", param=str(error).partition(":")[0]) from None


def _stops(given: Any) -> tuple[str, ...]:
    texts = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Refused(f"stop: should be a text or a list of texts, not {brief(given)}", param="stop")
    if len(texts) > STOPS or any(len(text) > STOP_LETTERS for text in texts):
        raise Refused(f"stop: too long. Use at most {STOPS} texts of {STOP_LETTERS} letters", param="stop")
    return tuple(texts)
