"""Tasks: what a model is for, by Hugging Face's pipeline names.

The registry from which the request schema, the choice of a task and the workers' code derive.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from app.domain.datasets import RECORD_KINDS
from app.domain.errors import InvalidInput
from app.domain.registry import Registry

TEXT_GENERATION = "text-generation"

_LIKELIHOODS = frozenset({"loss", "perplexity", "token_accuracy"})
_REWARDS = frozenset({"preference_accuracy", "reward", "reward_accuracy", "reward_margin"})
_CLASSES = frozenset({"loss", "accuracy", "mcc", "roc_auc"}) | {
    f"{name}_{mean}"
    for name in ("precision", "recall", "f1")
    for mean in ("macro", "micro", "weighted")
}
_NUMBERS = frozenset({"mse", "rmse", "mae", "r2", "spearman"})
_ENTITIES = frozenset({"entity_precision", "entity_recall", "entity_f1"})
_TEXTS = frozenset({"bleu", "chrf", "rouge1", "rouge2", "rougeL"})
_RANKS = frozenset({"recall_at_1", "recall_at_5", "recall_at_10", "mrr", "ndcg"})


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of problem.

    Attributes:
        summary: one sentence for people.
        record_kinds: what each method learns from, by method: names of record kinds.
        implementation: dotted path of the class in the worker that has its head, records, loss
            and predictions; None for text generation, which is computed on the packed trunk.
        metrics: names in `app.domain.metrics.METRICS` that its reports can have.
        main_metric: by which the best checkpoint is chosen unless another is named.
        has_classes: it tells classes apart, whose weights in the loss can differ.
        has_text: its input is text, whose embeddings can be changed while it learns.
    """

    summary: str
    record_kinds: dict[str, frozenset[str]]
    implementation: str | None
    main_metric: str
    metrics: frozenset[str]
    has_classes: bool = False
    has_text: bool = True

    def kinds_for(self, method: str) -> frozenset[str]:
        """Return the record kinds that a method learns from; empty if it does not apply."""
        return self.record_kinds.get(method, frozenset())


TASKS: Registry[Task] = Registry("task")
TASKS.add(
    TEXT_GENERATION,
    Task(
        summary="Answer conversations, continue prompts and texts.",
        record_kinds={
            "supervised": frozenset({"chat", "completion"}),
            "dpo": frozenset({"preference", "feedback"}),
            "reinforcement": frozenset({"reinforcement"}),
            "continued_pretraining": frozenset({"text"}),
        },
        implementation=None,
        main_metric="loss",
        metrics=_LIKELIHOODS | _REWARDS,
    ),
)
TASKS.add(
    "text-classification",
    Task(
        summary="Give texts or pairs of texts one label, several labels or a number.",
        record_kinds={"supervised": frozenset({"labelled_text"})},
        implementation="worker.tasks.text_classification:TextClassification",
        main_metric="loss",
        metrics=_CLASSES | _NUMBERS,
        has_classes=True,
    ),
)
TASKS.add(
    "token-classification",
    Task(
        summary="Find entities in texts, such as names, places and products.",
        record_kinds={"supervised": frozenset({"tagged_tokens", "text_spans"})},
        implementation="worker.tasks.token_classification:TokenClassification",
        main_metric="entity_f1",
        metrics=_ENTITIES | {"loss"},
        has_classes=True,
    ),
)
TASKS.add(
    "question-answering",
    Task(
        summary="Find the answer to a question in a text, or that it has none.",
        record_kinds={"supervised": frozenset({"question_answer"})},
        implementation="worker.tasks.question_answering:QuestionAnswering",
        main_metric="answer_f1",
        metrics=frozenset({"loss", "exact_match", "answer_f1"}),
    ),
)
TASKS.add(
    "fill-mask",
    Task(
        summary="Fill in masked words; learns the language of a field from raw texts.",
        record_kinds={"continued_pretraining": frozenset({"text"})},
        implementation="worker.tasks.fill_mask:FillMask",
        main_metric="loss",
        metrics=_LIKELIHOODS,
    ),
)
TASKS.add(
    "image-classification",
    Task(
        summary="Give images one label.",
        record_kinds={"supervised": frozenset({"labelled_image"})},
        implementation="worker.tasks.image_classification:ImageClassification",
        main_metric="loss",
        metrics=_CLASSES,
        has_classes=True,
        has_text=False,
    ),
)
TASKS.add(
    "automatic-speech-recognition",
    Task(
        summary="Write down what is said in recordings.",
        record_kinds={"supervised": frozenset({"transcribed_audio"})},
        implementation="worker.tasks.automatic_speech_recognition:AutomaticSpeechRecognition",
        main_metric="wer",
        metrics=frozenset({"loss", "wer", "cer"}),
        has_text=False,
    ),
)
TASKS.add(
    "feature-extraction",
    Task(
        summary="Turn texts into vectors that are near each other where the texts belong together.",
        record_kinds={"supervised": frozenset({"text_pairs", "scored_pairs"})},
        implementation="worker.tasks.feature_extraction:FeatureExtraction",
        main_metric="loss",
        metrics=_RANKS | {"loss", "spearman"},
    ),
)
TASKS.add(
    "text2text-generation",
    Task(
        summary="Turn source texts into target texts, as in translating and summing up.",
        record_kinds={"supervised": frozenset({"completion"})},
        implementation="worker.tasks.text2text_generation:Text2TextGeneration",
        main_metric="loss",
        metrics=_LIKELIHOODS | _TEXTS,
    ),
)


def _learnt_otherwise(offered: Sequence[str], record_kind: str) -> str:
    """Return, as a part of a sentence, which methods learn from such records."""
    methods = {
        method: None
        for name in offered
        if name in TASKS
        for method, kinds in TASKS[name].record_kinds.items()
        if record_kind in kinds
    }
    return f", from which {' or '.join(methods)} learns" if methods else ""


def choose_task(offered: Sequence[str], method: str, record_kind: str) -> str:
    """Return the one task of those offered that learns from such records by such a method.

    Args:
        offered: the tasks that the base model can be fine-tuned for.

    Raises:
        InvalidInput: there is none, or more than one.
    """
    fitting = [
        name for name in offered if name in TASKS and record_kind in TASKS[name].kinds_for(method)
    ]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        kinds = frozenset[str]().union(
            *(TASKS[name].kinds_for(method) for name in offered if name in TASKS)
        )
        if not kinds:
            raise InvalidInput(
                f"the method {method!r} is not for what this model can be fine-tuned for: "
                f"{', '.join(offered)}",
                param="method",
            )
        examples = " or ".join(kind.example for kind in RECORD_KINDS if kind.name in kinds)
        otherwise = _learnt_otherwise(offered, record_kind)
        raise InvalidInput(
            f"the training file holds {record_kind} records{otherwise}; with this model, which "
            f"can be fine-tuned for {', '.join(offered)}, the method {method!r} learns from "
            f"records such as {examples}",
            param="training_file",
        )
    raise InvalidInput(
        f"this model and these {record_kind} records fit more than one task: name one of "
        f"{', '.join(fitting)}",
        param="tunesmith.task",
        code="task_ambiguous",
    )
