"""Sampling answers on the trunk, and having them graded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.domain.errors import InvalidInput
from app.domain.graders import Completion, Grader, GradeResult, ModelPrompt
from worker.generation.generate import Generated, generate
from worker.generation.request import GenerationRequest
from worker.generation.sampling import SamplingParameters
from worker.generation.vocabulary import Vocabulary, end_token_ids
from worker.training.batches import derived_seed
from worker.training.reinforcement.grading import grade_all, refuse_useless_grader
from worker.trunk.chat import encode_prompt
from worker.trunk.trunk import Trunk

# What a grading model may say at most, unless its grader says otherwise.
_GRADING_TOKENS = 256

BeforeStep = Callable[[], None]


def _go_on() -> None:
    return


@dataclass(frozen=True, slots=True)
class Asked:
    """One answer to be sampled.

    Attributes:
        seed: of its draws; None takes the likeliest token each time.
    """

    prompt_ids: tuple[int, ...]
    item: Mapping[str, Any]
    seed: int | None


@dataclass(frozen=True, slots=True)
class Answer:
    """A sampled answer with its grade."""

    generated: Generated
    result: GradeResult


class Rollouts:
    """Answers prompts by the steps of the engine, and grades the answers.

    Args:
        trunk: with the adapters attached that are asked for.
        context_tokens: what a prompt of a grading model and its answer may have together.
        seed: of the grading model's draws, where its grader gives none.
    """

    def __init__(
        self,
        trunk: Trunk,
        grader: Grader,
        *,
        max_completion_tokens: int,
        temperature: float,
        context_tokens: int,
        seed: int,
    ) -> None:
        self._trunk = trunk
        self._grader = grader
        self._max_completion_tokens = max_completion_tokens
        self._temperature = temperature
        self._context_tokens = context_tokens
        self._seed = seed
        self._vocabulary = Vocabulary(trunk.tokenizer, end_token_ids(trunk))

    def answer(
        self, asked: Sequence[Asked], adapter: str | None, before_step: BeforeStep = _go_on
    ) -> list[Answer]:
        """Return a graded answer to each prompt, in the same order.

        Args:
            adapter: name of the attached adapter that answers; None: the base model does.
            before_step: called before each step of the generation; may raise to end it.

        Raises:
            TrainingFailed: the grader could not grade any of them.
        """
        found = self._generate(
            [
                GenerationRequest(
                    prompt_ids=one.prompt_ids,
                    max_tokens=self._max_completion_tokens,
                    adapter=adapter,
                    sampling=SamplingParameters(
                        temperature=0.0 if one.seed is None else self._temperature, seed=one.seed
                    ),
                )
                for one in asked
            ],
            before_step,
        )
        results = grade_all(
            self._grader,
            [(answer.text, one.item) for answer, one in zip(found, asked, strict=True)],
            lambda prompts: self._ask_base(prompts, before_step),
        )
        refuse_useless_grader(results)
        return [Answer(*pair) for pair in zip(found, results, strict=True)]

    def _generate(
        self, requests: Sequence[GenerationRequest], before_step: BeforeStep
    ) -> list[Generated]:
        return generate(self._trunk, self._vocabulary, requests, before_step=before_step)

    def _ask_base(
        self, prompts: Sequence[ModelPrompt], before_step: BeforeStep
    ) -> list[Completion | InvalidInput]:
        """Answer prompts of a grading model, which is the base model: no adapter is on."""
        requests: list[GenerationRequest | InvalidInput] = []
        for prompt in prompts:
            try:
                requests.append(self._request(prompt))
            except InvalidInput as error:
                requests.append(error)
        fitting = [one for one in requests if isinstance(one, GenerationRequest)]
        generated = iter(self._generate(fitting, before_step))
        return [
            one if isinstance(one, InvalidInput) else _completion(one, next(generated))
            for one in requests
        ]

    def _request(self, prompt: ModelPrompt) -> GenerationRequest:
        """Return what is to be generated. Raises: InvalidInput, where the prompt does not fit."""
        sampling = prompt.sampling
        prompt_ids = encode_prompt(self._trunk.tokenizer, prompt.messages, None)
        room = self._context_tokens - len(prompt_ids)
        if room < 1:
            raise InvalidInput(
                f"the prompt of the grading model is {len(prompt_ids)} tokens long; its context "
                f"holds {self._context_tokens}, answer included"
            )
        seed = sampling.seed
        if seed is None:
            seed = derived_seed(self._seed, "grading", *prompt_ids)
        return GenerationRequest(
            prompt_ids=tuple(prompt_ids),
            max_tokens=min(sampling.max_completion_tokens or _GRADING_TOKENS, room),
            sampling=SamplingParameters(
                temperature=1.0 if sampling.temperature is None else sampling.temperature,
                top_p=1.0 if sampling.top_p is None else sampling.top_p,
                seed=seed,
            ),
        )


def _completion(request: GenerationRequest, generated: Generated) -> Completion:
    return Completion(
        text=generated.text,
        prompt_tokens=len(request.prompt_ids),
        completion_tokens=len(generated.token_ids),
    )
