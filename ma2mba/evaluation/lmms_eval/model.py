"""A Video-Ma2mba model as lmms-eval runs it: the chat class of the entry point."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from loguru import logger
from tqdm import tqdm

from ma2mba.errors import UserError
from ma2mba.evaluation.harness import Pictures, Prompt, Reply, Responder, sampling_of
from ma2mba.evaluation.lmms_eval.messages import doc_window, prompt_of, visual_parts
from ma2mba.inference.chat import VideoChat
from ma2mba.inference.sampling import Sampling
from ma2mba.video.frames import WHOLE

ANSWER_TOKENS = 256
"""The longest answer of a task whose generation_kwargs name no max_new_tokens."""


class Ma2mba(lmms):
    """Chat model `ma2mba`. The parameters are the keys of --model_args.

    pretrained         A model folder, or a run folder. Required.
    frames             How videos are sampled: 1fps, or a number of frames. Default: 1fps.
    dtype              auto, bf16 or fp32. Default: auto.
    max_new_tokens     The longest answer of tasks that do not say it. Default: 256.
    repetition_stop    End an answer that repeats itself, as `ma2mba eval` does. Default: True.
    seed               Seed of sampled answers. Repeat n of a request has the seed plus n. Default: 0.
    time_fields        START:END, the fields of a task's documents that hold the seconds to watch. Default: none.

    --batch_size: the answers that are written together. --device: cpu or cuda; by default a GPU if there is one.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "",
        frames: str | int = "1fps",
        dtype: str = "auto",
        max_new_tokens: int = ANSWER_TOKENS,
        repetition_stop: bool = True,
        seed: int = 0,
        time_fields: str = "",
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        if not pretrained:
            raise UserError("--model_args: pretrained is missing. Use --model_args pretrained=DIR")
        if not str(batch_size).isdecimal():
            raise UserError(f"--batch_size {batch_size}: not a whole number. Use a number such as 8")
        self._defaults = Sampling(max_tokens=max_new_tokens, repetition_stop=repetition_stop, seed=seed)
        self._fields = _fields(time_fields)
        self._pictures = Pictures()
        chat = VideoChat.open(pretrained, _device(device), dtype)
        self._responder = Responder(chat, frames, int(batch_size))
        self._lost: Counter[str] = Counter()

    @property
    def device(self) -> torch.device:
        return next(self._responder.model.parameters()).device

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Return an answer to each request. A request that cannot be answered has an empty text, and is logged."""
        prompts = [self._prompt(request) for request in requests]
        samplings = self._samplings(requests)
        results: list[GenerationResult | None] = [None] * len(requests)
        with tqdm(total=len(requests), disable=self.rank != 0, desc="ma2mba") as bar:
            for sampling in dict.fromkeys(samplings):
                numbers = [n for n, other in enumerate(samplings) if other == sampling]
                asked = {n: prompt for n in numbers if isinstance(prompt := prompts[n], Prompt)}
                bar.update(len(numbers) - len(asked))
                replies = self._responder.answer(list(asked.values()), sampling, bar.update)
                for n, reply in zip(asked, replies, strict=True):
                    results[n] = self._result(requests[n], reply)
        for n, prompt in enumerate(prompts):
            if isinstance(prompt, UserError):
                results[n] = self._result(requests[n], prompt)
        self._summarise(len(requests))
        return [result for result in results if result]

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[list[str]]:
        """Return for each request its answers, one a round. Each round asks what the task's doc_to_messages gives."""
        answers = []
        for request, sampling in zip(requests, self._samplings(requests), strict=True):
            doc_to_messages, said, info = request.args[1], list[str](), None
            messages = doc_to_messages(self._doc(request))
            while messages is not None:
                prompt = self._checked(request, messages)
                reply = self._responder.answer([prompt], sampling)[0] if isinstance(prompt, Prompt) else prompt
                said.append(self._result(request, reply).text)
                messages, info = _next_round(doc_to_messages, self._doc(request), said, info)
            answers.append(said)
        self._summarise(len(requests))
        return answers

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Return for each request the log-probability of its continuation, and if greedy decoding would write it.

        The arguments of a request are (context, continuation or doc_to_target, doc_to_visual, doc_id, task, split):
        lmms-eval has no chat form. A request that cannot be answered has minus infinity.
        """
        scored = []
        for request in requests:
            context, continuation, doc_to_visual = request.args[:3]
            doc = self._doc(request)
            content = [*visual_parts(doc_to_visual(doc) if doc_to_visual else ()), {"type": "text", "text": context}]
            prompt = self._checked(request, [{"role": "user", "content": content}])
            text = continuation if isinstance(continuation, str) else str(continuation(doc))
            try:
                if isinstance(prompt, UserError):
                    raise prompt
                scored.append(self._responder.score(prompt, text.lstrip()))
            except UserError as error:
                self._note(request, error)
                scored.append((float("-inf"), False))
        self._summarise(len(requests))
        return scored

    def _doc(self, request: Instance) -> Mapping[str, Any]:
        doc_id, task, split = request.args[3:6]
        return self.task_dict[task][split][doc_id]

    def _prompt(self, request: Instance) -> Prompt | UserError:
        return self._checked(request, request.args[1](self._doc(request)))

    def _checked(self, request: Instance, messages: Iterable[Mapping[str, Any]]) -> Prompt | UserError:
        """Return the prompt of messages, or why the model cannot be given it."""
        try:
            window = doc_window(self._doc(request), self._fields) if self._fields else WHOLE
            return prompt_of(list(messages), self._pictures, window)
        except UserError as error:
            return error

    def _samplings(self, requests: Sequence[Instance]) -> list[Sampling]:
        """Return the options of each request. A request that is repeated gets another seed each time."""
        seen: Counter[tuple[Any, ...]] = Counter()
        samplings = []
        for request in requests:
            sampling = sampling_of(request.args[2] or {}, self._defaults)
            key = request.args[3:6]
            if sampling.heat:
                sampling = replace(sampling, seed=(sampling.seed or 0) + seen[key])
            seen[key] += 1
            samplings.append(sampling)
        return samplings

    def _result(self, request: Instance, reply: Reply) -> GenerationResult:
        if isinstance(reply, UserError):
            self._note(request, reply)
            return GenerationResult(text="", token_counts=TokenCounts(output_tokens=0))
        self.cache_hook.add_partial("generate_until", (request.args[0], request.args[2]), reply.text)
        return GenerationResult(text=reply.text, token_counts=TokenCounts(output_tokens=len(reply.tokens)))

    def _note(self, request: Instance, error: UserError) -> None:
        if not self._lost[str(error)]:
            logger.error(f"ma2mba: task {request.args[4]}, document {request.args[3]}: {error}")
        self._lost[str(error)] += 1

    def _summarise(self, requests: int) -> None:
        """Log how many requests have no answer, and why."""
        for reason, count in self._lost.items():
            logger.warning(f"ma2mba: {count} of {requests} requests have no answer: {reason}")
        self._lost.clear()


def _next_round(
    doc_to_messages: Any, doc: Mapping[str, Any], said: list[str], info: Any
) -> tuple[list[Mapping[str, Any]] | None, Any]:
    """Return the messages of the next round, None after the last one, and what the task wants to have back."""
    given = doc_to_messages(doc, round_idx=len(said), previous_output=list(said), previous_round_info=info)
    if not (isinstance(given, tuple) and len(given) == 4):
        return None, None
    messages, last, _, info = given
    return (None if last else messages), info


def _fields(text: str) -> tuple[str, str] | None:
    if not text:
        return None
    start, colon, end = text.partition(":")
    if not (start and colon and end):
        raise UserError(f"time_fields: {text!r} does not name two fields. Use START:END, such as start:end")
    return start, end


def _device(device: str | None) -> str:
    """Return the device of this process: with several processes on GPUs, each has its own."""
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return name
