"""What all architectures have in common: the settings of a stack of blocks, their checks, and the blocks.

Holds no architecture: embeddings, heads and the order of things are in `decoder`, `encoder` and `encoder_decoder`,
layers in `layers`. Letters of shapes: `models/base.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Any, Self

from torch import Tensor, nn

from pretrain.errors import check
from pretrain.models.base import Attend, AttentionUse, Model, ModelConfig, ModelKind
from pretrain.models.init import Init, Initial
from pretrain.models.layers import BLOCKS, MLP, Activation, Attention, Block, Norm, Order, Positions, make_norm
from pretrain.models.rotary import RopeScaling, Rotary, Scaling, rotary

# Projections into the residual stream, and the head's transform, which ModernBERT initialises like them.
_RESIDUAL = ("attention.out.weight", "cross.out.weight", "mlp.down.weight", "transform.dense.weight")

# Settings that change nothing of what a trained network computes.
TRAINING = ("dropout", "attention_dropout", "mlp_dropout", "init", "init_std")


@dataclass(kw_only=True)
class NetworkConfig(ModelConfig):
    """The settings of a stack of transformer blocks; the defaults are GPT-2's."""

    max_seq_len: int  # tokens a sequence may have; owned by data.seq_len
    width: int = 768  # of the residual stream, D
    layers: int = 12  # blocks, L
    heads: int = 12  # query heads, H
    mlp_width: int | None = None  # hidden width of the MLP; null: 4 * width
    norm_eps: float = 1e-5  # added to the variance
    activation: Activation = Activation.gelu_tanh  # of the MLP: gelu, gelu_tanh, relu, silu, swiglu, geglu, geglu_tanh
    positions: Positions = Positions.learned  # how it knows where a token stands: learned, sinusoidal or rotary
    rope_theta: float = 10_000.0  # base of the rotary frequencies
    local_rope_theta: float | None = None  # the same in layers with a window, never scaled; null: as all others
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)  # of the rotary frequencies, for longer texts
    rotary_share: float = 1.0  # of a head's coordinates that are rotated, the first ones (GPT-NeoX)
    order: Order = Order.pre  # what a block normalises: pre, post, output, sandwich or parallel
    bias: bool = True  # biases in projections and layer norms
    tie_embeddings: bool = True  # the head is the embedding
    window: int | None = None  # keys a query sees up to itself, in tokens; null: all
    global_every: int | None = None  # with a window, every n-th layer sees all keys; null: none does
    global_first: int = 0  # the first of them, counted from 0
    dropout: float = 0.0  # probability, of embeddings and residual branches
    attention_dropout: float = 0.0  # probability, of attention weights; not with attention=flex
    init: Init = Init.gpt2  # scheme of the initial weights: gpt2, olmo2, bert or modernbert
    init_std: float = 0.02  # standard deviation of initial matrices
    family: str | None = None  # whose heads and export it has where several compute it, by model_type; null: the first

    def __post_init__(self) -> None:
        for key in ("max_seq_len", "width", "layers", "heads", "mlp_width", "window", "global_every"):
            value = getattr(self, key)
            check(value is None or value >= 1, f"model.{key}", value, "must be at least 1")
        whole = "model.width" if self.all_heads_width == self.width else "model.attention_width"
        rule = f"must divide {whole}={self.all_heads_width}"
        check(self.all_heads_width % self.heads == 0, "model.heads", self.heads, rule)
        self._check_positions()
        for key in ("norm_eps", "init_std"):
            check(getattr(self, key) > 0, f"model.{key}", getattr(self, key), "must be positive")
        for key in ("dropout", "attention_dropout"):
            check(0 <= getattr(self, key) < 1, f"model.{key}", getattr(self, key), "must lie in [0, 1)")
        rule = "means something only beside model.window; set it or leave this null"
        check(self.global_every is None or self.window is not None, "model.global_every", self.global_every, rule)
        rule = f"must lie in [0, model.global_every={self.global_every or 1})"
        check(0 <= self.global_first < (self.global_every or 1), "model.global_first", self.global_first, rule)

    def _check_positions(self) -> None:
        """Raise `ConfigError` for positions that the width cannot encode, and for settings of other positions."""
        is_rotary = self.positions is Positions.rotary
        rule = "belongs to rotary positions and lies in (0, 1]; set 1"
        share = self.rotary_share
        check(0 < share <= 1 and (is_rotary or share == 1), "model.rotary_share", share, rule)
        paired = self.rotary_width if is_rotary else self.width
        even = self.positions not in (Positions.sinusoidal, Positions.rotary) or (paired % 2 == 0 and paired > 0)
        rule = f"needs pairs of coordinates, not {paired}; change model.width or model.heads"
        check(even, "model.positions", self.positions.value, rule)
        for key in ("rope_theta", "local_rope_theta"):
            value = getattr(self, key)
            check(value is None or value > 0, f"model.{key}", value, "must be positive")
        kind, rule = self.rope_scaling.kind, "belongs to rotary positions; set none"
        check(is_rotary or kind is Scaling.none, "model.rope_scaling.kind", kind.value, rule)
        rule = "YaRN needs a base above 1"
        check(kind is not Scaling.yarn or self.rope_theta > 1, "model.rope_theta", self.rope_theta, rule)

    def plain(self) -> Self:
        """Return the same network in the fewest settings.

        What has no effect, or says what its default would say, has its default.
        """
        same = {key: None for key, value in self.nulls().items() if getattr(self, key) == value}
        idle = {key.name: default_of(key) for key in fields(self) if key.name in self.idle()}
        return replace(self, **{"rope_scaling": self.rope_scaling.short(), **same, **idle})

    def nulls(self) -> dict[str, Any]:
        """Return what settings stand for where they are null, by their names."""
        unscaled = self.rope_scaling.short().kind is Scaling.none
        return {"mlp_width": 4 * self.width, **({"local_rope_theta": self.rope_theta} if unscaled else {})}

    def idle(self) -> set[str]:
        """Return the names of settings that have no effect beside the others."""
        windows = {self.layer_window(layer) for layer in range(self.layers)}
        names = set() if self.positions is Positions.rotary else {"rope_theta", "local_rope_theta"}
        if windows == {None}:
            names |= {"window", "local_rope_theta"}
        if len(windows) == 1:
            names |= {"global_every", "global_first"}
        return names

    @property
    def all_heads_width(self) -> int:
        """Width of all heads of one attention together, H E."""
        return self.width

    @property
    def head_width(self) -> int:
        """Width of one attention head, E."""
        return self.all_heads_width // self.heads

    @property
    def rotary_width(self) -> int:
        """Coordinates of a head that are rotated, R."""
        return int(self.head_width * self.rotary_share)

    @property
    def num_kv_heads(self) -> int:
        """Key-value heads, K."""
        return self.heads

    @property
    def hidden_width(self) -> int:
        """Hidden width of the MLP; a gated one has two projections of it."""
        return 4 * self.width if self.mlp_width is None else self.mlp_width

    @property
    def score_scale(self) -> float | None:
        """What attention multiplies scores by; None: 1 / sqrt(E)."""
        return None

    @property
    def has_qkv_bias(self) -> bool:
        """Whether projections to queries, keys and values have a bias."""
        return self.bias

    @property
    def attention_use(self) -> AttentionUse:
        """What it asks of its attention (see `ModelConfig`)."""
        both = self.kind is ModelKind.encoder_decoder
        return AttentionUse(
            heads=self.heads,
            kv_heads=self.num_kv_heads,
            head_width=self.head_width,
            causal=(False, True) if both else (self.kind is ModelKind.causal,),
            windows=tuple(dict.fromkeys(self.layer_window(layer) for layer in range(self.layers))),
            biased=self.score_bias is not None,
            dropout=self.attention_dropout,
        )

    def layer_window(self, layer: int) -> int | None:
        """Return the window of a layer in tokens, None where it sees all keys."""
        sees_all = self.global_every is not None and layer % self.global_every == self.global_first
        return None if sees_all else self.window

    def rotations(self, positions: Tensor) -> list[Rotary | None]:
        """Return the rotation of each layer at positions (N,), None where positions are not rotary."""
        if self.positions is not Positions.rotary:
            return [None] * self.layers
        everywhere = local = rotary(positions, self.rotary_width, self.rope_theta, self.rope_scaling)
        if self.window is not None and self.local_rope_theta is not None:
            local = rotary(positions, self.rotary_width, self.local_rope_theta)
        return [everywhere if self.layer_window(layer) is None else local for layer in range(self.layers)]

    def make_norm(self, width: int | None = None) -> nn.Module:
        """Return a normalisation layer over a width, by default the model's."""
        return make_norm(Norm.layernorm, width or self.width, self.norm_eps, self.bias)

    def make_qk_norms(self) -> tuple[nn.Module, nn.Module] | None:
        """Return the norms of the queries and the keys of a layer, None for none."""
        return None

    def make_attention(self, **parts: Any) -> Attention:
        """Return the attention of a layer, of these arguments."""
        return Attention(**parts)

    def make_block(self, layer: int, attend: Attend) -> Block:
        """Return the block of a layer, counted from 0."""
        attention = self.make_attention(
            width=self.width,
            heads=self.heads,
            kv_heads=self.num_kv_heads,
            head_width=self.head_width,
            bias=self.bias,
            qkv_bias=self.has_qkv_bias,
            qk_norms=self.make_qk_norms(),
            dropout=self.attention_dropout,
            causal=self.kind is ModelKind.causal,
            window=self.layer_window(layer),
            scale=self.score_scale,
            attend=attend,
        )
        mlp = MLP(width=self.width, hidden=self.hidden_width, activation=self.activation, bias=self.bias)
        names = ["attention_norm", "mlp_norm"]
        if self.order is Order.sandwich:
            names += ["attention_output_norm", "mlp_output_norm"]
        norms = {name: self.make_norm() for name in names}
        return BLOCKS[self.order](attention=attention, mlp=mlp, dropout=self.dropout, **norms)

    def initial(self, name: str, ndim: int) -> Initial:
        """Return the distribution of a parameter of this name and number of dimensions, by the scheme `init`."""
        if ndim == 1:
            return Initial(mean=0.0 if name.endswith("bias") else 1.0)
        shrunk = self.init.shrinks_residual and name.endswith(_RESIDUAL)
        return Initial(std=self.init_std / (2 * self.layers) ** 0.5 if shrunk else self.init_std, cut=self.init.cuts)

    def flops_per_token(self, model: Model, head: Sequence[Tensor], head_share: float, seq_len: float) -> float:
        """Return the floating-point operations of one token, forward and backward (PaLM, appendix B, 2022).

        Those of `matrix_flops`, 6 a parameter where all learn; `head_share` of the tokens pass through the matrices of
        the `head`. And for each layer and visible key 4 H E forward, twice as many backward. All keys in the window or
        sequence count as visible, those after the query too: the convention of PaLM and of torch's counter, twice what
        a causal kernel has to compute.
        """
        # A bidirectional window reaches as far to the right as to the left, and counts the token itself once.
        both_sides = self.kind is not ModelKind.causal
        reached, total = embeddings_learn(model), 0.0
        for layer, block in enumerate(model.blocks):
            reached = reached or learns(block.parameters())
            window = self.layer_window(layer)
            reach = seq_len if window is None else min(2 * window - 1 if both_sides else window, seq_len)
            total += matrix_flops(block.parameters(), reached=reached)
            total += 4.0 * self.all_heads_width * reach * (3 if reached else 1)
        return total + head_share * matrix_flops(head, reached=reached)


def default_of(key: Field[Any]) -> Any:
    """Return the default of a setting."""
    return key.default if key.default_factory is MISSING else key.default_factory()


def matrix_flops(parameters: Iterable[Tensor], *, reached: bool) -> float:
    """Return the operations of one token in the matrix products among these parameters, forward and backward.

    2 a parameter forward, 2 for the gradient of what the product reads, and 2 for its own if it learns. `reached` says
    whether the backward pass comes so far: something learns here or before.
    """
    return sum(2.0 * one.numel() * (1 + reached + one.requires_grad) for one in parameters if one.ndim == 2)


def learns(parameters: Iterable[Tensor]) -> bool:
    """Return whether any of these parameters is trained."""
    return any(parameter.requires_grad for parameter in parameters)


def embeddings_learn(model: Model) -> bool:
    """Return whether anything before the blocks is trained."""
    return learns(parameter for name, parameter in model.named_parameters() if model.depth(name) == 0)
