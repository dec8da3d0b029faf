"""What the compiler knows of a model: a `ModelSpec`, found by the architecture that a `config.json` names.

Everything that differs between models stands in a spec as data or as a small function: how the configuration is read,
what the step programs are, which parameters they have and where a checkpoint keeps them, which layers are equal. The
compiler, the search for a placement, the manifest, the peers and the command line ask the spec and contain no model's
name. Nothing here imports torch; functions of a spec that need it import it when they are called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self, TypeVar

from tilecompile.runtime.format import LOOP_INPUTS, PROGRAMS, SAMPLING_INPUTS, SAMPLING_WORDS
from tilecompile.runtime.weight_formats import FORMATS

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class LayerKind:
    """What a layer consists of: layers of equal kind have equal operators on equal shapes.

    One that is not `independent` uses what an earlier layer has made besides the residual stream, so it can't be first.
    """

    name: str
    independent: bool = True


@dataclass(frozen=True)
class Figures:
    """Main figures of a model: parameters in all, those that a token reads, layers, width, experts a layer and token
    (0 where there are none)."""

    parameters: int
    active_parameters: int
    layers: int
    hidden_size: int
    experts: int = 0
    experts_per_token: int = 0


class ModelConfig(Protocol):
    """A model's configuration: a frozen dataclass whose fields are those of `config.json` where they exist there."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def architecture(self) -> str:
        """The architecture as `config.json` names it: the key of the model's spec."""

    @property
    def weight_type(self) -> str:
        """The weight type that keeps the checkpoint's values."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""

    @property
    def max_position_embeddings(self) -> int:
        """Positions that the model was made for."""

    @property
    def eos_token_id(self) -> tuple[int, ...]:
        """Ids that end a generation."""

    @property
    def layers(self) -> tuple[LayerKind, ...]:
        """The kind of each layer: equal ones are planned once."""

    @property
    def figures(self) -> Figures:
        """The main figures, for people and for estimates of memory."""

    def with_layers(self, layers: Sequence[int]) -> Self:
        """The configuration of the model that has only these layers, in this order."""

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON values, `architectures` among them; `from_dict` reads them back."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "config") -> Self:
        """The configuration from a `config.json`'s values; InputError, which begins with `source`, for what the model
        side doesn't support."""


C = TypeVar("C", bound=ModelConfig)


@dataclass(frozen=True)
class Storage:
    """How a model is stored in an engine: positions that its caches hold, type of caches, format of weight matrices.

    Norms and biases are f32. `draft_head` is the format of a second copy of the matrix that makes logits, for drafts
    only; None where they use the model's own.
    """

    max_seq_len: int
    cache: str = "f32"
    weights: str = "f32"
    draft_head: str | None = None

    @property
    def exact(self) -> str:
        """The format of matrices that published checkpoints don't quantise: bf16 where others are fp8."""
        return FORMATS[self.weights].exact


@dataclass(frozen=True)
class Steps:
    """Sizes of an engine's steps: tokens of the prompt that one takes, and tokens that a round of speculation drafts
    (0: none)."""

    prefill: int = 1
    drafts: int = 0

    @property
    def most(self) -> int:
        """Most tokens of a step."""
        return max(self.prefill, 1 + self.drafts)


@dataclass(frozen=True)
class Input:
    """An input of a step program: a number in `shape`, or "tokens", or the name of a field of the configuration."""

    shape: tuple[int | str, ...]
    dtype: str = "i32"

    def sizes(self, config: ModelConfig, tokens: int) -> tuple[int, ...]:
        """The shape for a configuration and `tokens` tokens a step."""
        return tuple(
            size if isinstance(size, int) else tokens if size == "tokens" else int(getattr(config, size))
            for size in self.shape
        )


@dataclass(frozen=True)
class StepProgram(Generic[C]):
    """One step program: a module whose `forward` takes INPUTS in their order and returns LOOP_OUTPUTS.

    `module(config, storage, steps, tokens)` makes it for steps of `tokens` tokens, with parameters named as in the
    parameter table. `states` are its buffers that step programs hand to each other. One that `samples` takes
    SAMPLING too, and chooses ids by them; without them it takes the likeliest.
    """

    name: str
    tokens: int
    module: Callable[[C, Storage, Steps, int], nn.Module]
    states: tuple[str, ...] = ()
    samples: bool = False

    def __post_init__(self) -> None:
        if self.name not in PROGRAMS:
            raise ValueError(f"step program {self.name} is unknown; there are: {', '.join(PROGRAMS)}")


INPUTS = {"ids": Input(("tokens",)), "position": Input((1,))}
"""The inputs of a step program, in the order of LOOP_INPUTS."""

if tuple(INPUTS) != LOOP_INPUTS:
    raise AssertionError(f"step programs have inputs {tuple(INPUTS)}, want {LOOP_INPUTS}")


SAMPLING = {
    "sampling": Input((SAMPLING_WORDS,)),
    "bias": Input(("vocab_size",), "f32"),
    "counts": Input(("vocab_size",)),
}
"""The further inputs of a step program that samples, in the order of SAMPLING_INPUTS."""

if tuple(SAMPLING) != SAMPLING_INPUTS:
    raise AssertionError(f"step programs sample with {tuple(SAMPLING)}, want {SAMPLING_INPUTS}")


@dataclass(frozen=True)
class Window:
    """One matrix of a parameter, as it is stored in a checkpoint tensor of shape `shape`.

    The matrix begins at (`row`, `col`) of the tensor, of a 3-d one at its matrix `matrix`; if `transposed`, its rows
    are columns of the tensor.
    """

    tensor: str
    shape: tuple[int, ...]
    row: int = 0
    col: int = 0
    transposed: bool = False
    matrix: int = 0


@dataclass(frozen=True)
class Parameter:
    """A parameter: its shape ([N], [rows, cols] or [matrices, rows, cols]) and one window a matrix."""

    shape: tuple[int, ...]
    windows: tuple[Window, ...]


@dataclass(frozen=True)
class PeerModel(Generic[C]):
    """transformers' model of an architecture, which peers run on the engine's weights.

    `make(config)` gives it without memory for its parameters, `prepare(model, config)` sets what neither transformers'
    configuration nor the weights say, `value(name, read)` is a parameter's value by its name there, from the
    parameters of the step programs. `buffers` are endings of names of buffers that are weights too.
    """

    make: Callable[[C], Any]
    prepare: Callable[[Any, C], None]
    value: Callable[[str, Callable[[str], Tensor]], Tensor]
    buffers: tuple[str, ...] = ()


class HeldTensors(Protocol):
    """What a checkpoint holds, by the names that the model uses."""

    def holds(self, tensor: str) -> bool:
        """Whether a tensor is there, in any form."""

    def differ(self, one: str, other: str) -> bool:
        """Whether two tensors that are there have different values."""


def _as_configured(config: Any, held: HeldTensors) -> tuple[Any, tuple[str, ...]]:
    return config, ()


@dataclass(frozen=True)
class ModelSpec(Generic[C]):
    """A model class: see the head of this file. `architecture` is the key, `model_type` that of transformers."""

    architecture: str
    model_type: str
    config: type[C]

    programs: Callable[[C, Steps], tuple[StepProgram[C], ...]]
    """The step programs of a model for steps of these sizes, the one that decodes first."""

    parameters: Callable[[C], dict[str, Parameter]]
    """Every parameter of the step programs by name."""

    spread: Callable[[C, str, int], tuple[float, float]]
    """Mean and standard deviation of a checkpoint tensor by its name and columns, where weights are drawn."""

    drafts: Callable[[C], bool] = lambda config: False
    """Whether a model can draft tokens."""

    tables: Mapping[str, Callable[[C], Tensor]] = field(default_factory=dict)
    """Buffers of the step programs that no checkpoint holds, by name: they are computed."""

    held: Callable[[C, HeldTensors], tuple[C, tuple[str, ...]]] = _as_configured
    """The configuration without optional layers that a checkpoint lacks, and notes on that."""

    prefix: str = ""
    """What the names of most tensors begin with; a checkpoint may have another begin in its place."""

    joined: Callable[[C], Mapping[str, Window]] = lambda config: {}
    """Tensors that may be parts of larger ones in a checkpoint: where they are there."""

    routed: Callable[[str], bool] = lambda tensor: False
    """Whether a checkpoint tensor belongs to experts that tokens are routed to."""

    spare: Callable[[C, str], bool] = lambda config, tensor: False
    """Whether a model may do without a checkpoint tensor, and nobody needs to know."""

    named: Mapping[str, C] = field(default_factory=dict)
    """Configurations by the name that the command line takes."""

    relatives: Mapping[str, str] = field(default_factory=dict)
    """Model types that are taken for this one and are others: what each is, in words."""

    peer: Callable[[], PeerModel[C]] | None = None

    chosen: frozenset[str] = frozenset()
    """Fields that an option of the compiler can set: an engine states them, and its peers take them from there."""

    same_results: frozenset[str] = frozenset()
    """Fields in which configurations may differ although the models compute the same."""
