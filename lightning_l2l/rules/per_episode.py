"""A rule whose parameters differ from episode to episode."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_l2l.rules.base import State, UpdateRule


class PerEpisode(UpdateRule):
    """Runs a rule with separate parameters φ_n in each of N episodes, in one batched call.

    So the antithetic pairs of an evolution strategy, or a population of rules, run side by side. It is not
    differentiable with respect to φ.

    Args:
        rule: the update rule, bound to a layout where it needs one.
        phi: its parameters by name, as ``named_parameters`` gives them, each [N, ...].
    """

    def __init__(self, rule: UpdateRule, phi: dict[str, Tensor]) -> None:
        super().__init__()
        self.rule = rule
        self.sees = rule.sees
        self.phi = phi

    def start(self, theta: Tensor) -> Tensor:
        return self._map("start", theta[:, None])[:, 0]

    def init(self, theta: Tensor) -> State:
        """The states that ``rule.init`` gives for each episode, stacked to [N, ...]."""
        return self._map("init", theta[:, None])

    def update(self, grad: Tensor, state: State, **seen: Tensor) -> tuple[Tensor, State]:
        values = {name: value[:, None] for name, value in seen.items()}
        update, state = self._map("update", grad[:, None], state, **values)
        return update[:, 0], state

    def forward(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of the rule, with the parameters that ``functional_call`` gives it."""
        return getattr(self.rule, method)(*args, **kwargs)

    def _map(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of the rule for each episode: tensors are split by their first dimension, numbers shared."""
        leaves, form = pytree.tree_flatten((args, kwargs))
        batched = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        shared: dict[int, Any] = {}
        spec: list[pytree.TreeSpec] = []

        def one(phi: dict[str, Tensor], tensors: list[Tensor]) -> list[Tensor]:
            given = iter(tensors)
            own_args, own_kwargs = pytree.tree_unflatten(
                [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves], form
            )
            own_phi = {f"rule.{name}": value for name, value in phi.items()}
            result = torch.func.functional_call(self, own_phi, (method, *own_args), own_kwargs)
            out, out_form = pytree.tree_flatten(result)
            spec[:] = [out_form]
            shared.update({place: leaf for place, leaf in enumerate(out) if not isinstance(leaf, Tensor)})
            return [leaf for leaf in out if isinstance(leaf, Tensor)]

        with torch.enable_grad():  # without gradients, rules may overwrite buffers, which vmap forbids
            tensors = iter(torch.func.vmap(one, randomness="different")(self.phi, batched))
        count = spec[0].num_leaves
        out = [shared[place] if place in shared else next(tensors).detach() for place in range(count)]
        return pytree.tree_unflatten(out, spec[0])
