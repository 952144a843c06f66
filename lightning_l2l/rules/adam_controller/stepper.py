"""Steps parameter tensors by the controller, in place and all tensors of a group together."""

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.rules.adam_controller.arithmetic import MEANS, Arithmetic, OneStep
from lightning_l2l.rules.adam_controller.kernel import KernelArithmetic, kernel_for
from lightning_l2l.rules.adam_controller.network import CONTROLS, ControllerNetwork
from lightning_l2l.rules.adam_controller.orthogonal import matrix_shape
from lightning_l2l.rules.adam_controller.remainder import exact, round_into
from lightning_l2l.rules.adam_controller.statistics import MEMORY, at_bounds, shape_features
from lightning_l2l.rules.fast import machine
from lightning_l2l.rules.fast.addresses import lie_alike
from lightning_l2l.rules.fast.stepper import KeptState, Stepper, Work


class ControllerStepper(Stepper):
    """Takes the steps of ``AdamController`` on parameter tensors in their shapes, without concatenating them.

    A tensor's state holds four running means and, for matrices, the last O: 20 bytes a coordinate in float32.
    Half-precision parameters are stepped in float32, and what rounding took from them is kept in a ``remainder``, two
    bytes more, so that small steps add up.

    Each tensor has a clock of its own, and means over tensors are over those that are stepped together: a frozen one is
    not among them, and one that is thawed late begins at its own first step.

    Args:
        rule: the rule, on that device and in that type.
        device: where parameters are.
        dtype: the floating-point type in which steps are computed.
    """

    keeps_shapes = True

    def __init__(self, rule: ControllerNetwork, device: torch.device, dtype: torch.dtype) -> None:
        self.rule: ControllerNetwork = rule.cpu()  # where it runs, since it is small
        self.device = device
        self.dtype = dtype
        self.arithmetic = arithmetic(device, dtype)
        self._known: dict[int, Known] = {}  # by the state's identity
        self._features_of: dict[tuple[torch.Size, ...], Tensor] = {}

    def init(self, theta: Tensor) -> KeptState:
        """Returns the state before the first step of a tensor of any shape."""
        state: KeptState = {name: torch.zeros_like(theta, dtype=self.dtype) for name in self._means(theta)}
        if theta.dtype != self.dtype:
            state["remainder"] = torch.zeros_like(theta, dtype=torch.int16)
        memory = torch.zeros(MEMORY, dtype=self.dtype, device=self.device)
        return {**state, "memory": memory, "controls": [], "step": 0}

    def holds(self, state: KeptState, theta: Tensor) -> bool:
        means, rounds = self._means(theta), theta.dtype is not self.dtype
        if list(state) != [*means, *(["remainder"] if rounds else []), "memory", "controls", "step"]:
            return False
        *tensors, memory, controls, step = state.values()
        if rounds and not lie_alike([tensors.pop()], theta, torch.int16):
            return False
        counted = type(step) is int and step >= 0
        counted &= type(controls) is list and len(controls) == (CONTROLS if step else 0)
        remembered = memory.shape == (MEMORY,) and memory.dtype is self.dtype and memory.device == self.device
        return counted and remembered and memory.is_contiguous() and lie_alike(tensors, theta, self.dtype)

    def adopt(self, state: KeptState, theta: Tensor) -> KeptState:
        """As ``Stepper.adopt``; what rounding took is left out if θ has become exact, and begins if it no longer is."""
        fresh = self.init(theta)
        if "remainder" in state.keys() ^ fresh.keys():
            state = {name: state.get(name, value) for name, value in fresh.items()}
        saved = state.get("controls")
        if isinstance(saved, Tensor) and saved.ndim == 1 and saved.is_floating_point():  # as a state dict has them
            state = {**state, "controls": saved.tolist()}
        adopted = self.copy(state, fresh)
        controls, step = [float(number) for number in adopted["controls"]], int(adopted["step"])
        if step < 0 or len(controls) != (CONTROLS if step else 0):
            raise InvalidInputError(
                f"the state of a parameter at step {step} has {len(controls)} controls, but {self.rule.label} keeps "
                f"{CONTROLS} after the first step: load the state of the same parameters."
            )
        return {**adopted, "controls": controls, "step": step}

    def step(self, work: Sequence[Work], factor: float, loss: float | Tensor | None = None, decay: float = 0.0) -> None:
        """Takes one step of each tensor, as in ``Stepper``; θ and its gradient are in any shape."""
        steps = [self._one_step(*own) for own in work]
        copied = [theta.data_ptr() for (theta, *_), one in zip(work, steps, strict=True) if one.theta is not theta]
        if len(set(copied)) < len(copied):  # each would write back its own step, and undo the others'
            raise InvalidInputError(
                "two parameters share their memory, and are stepped in copies, as in half precision or with gaps: give "
                "the optimizer one parameter that is used twice."
            )
        if decay:
            torch._foreach_mul_([one.theta for one in steps], 1 - decay)
        for one in steps:
            one.state["step"] += 1
        due = [self.rule.due(one.state["step"]) for one in steps]
        if any(due):
            self._renew(steps, due)
        self.arithmetic.step(steps, factor, average=not any(due))
        for (theta, _, state), one in zip(work, steps, strict=True):
            close(theta, state, one.theta)

    def saturated(self, state: KeptState, count: int) -> Tensor:
        """The share of four inputs that were at a bound when the network last ran, [1]; see ``at_bounds``."""
        return at_bounds(state["memory"][2:])[None]

    def _one_step(self, theta: Tensor, grad: Tensor, state: KeptState) -> OneStep:
        """Checks that these fit each other, converts the state in place if it must, and opens them for the step.

        Raises:
            InvalidInputError: they do not fit each other, or have no memory of their own.
        """
        known = self._known.get(id(state))
        if known is None or not known.fits(theta, grad, state):  # comparing takes less time than checking anew
            self.fit([(theta, grad, state)])
            known = self._known[id(state)] = Known(theta, grad, state)
        if not known.as_they_are:
            theta, grad = opened(theta, state), ordered(grad, state)
        at_theta, at_grad = theta.data_ptr(), grad.data_ptr()
        if known.count and not (at_theta and at_grad):  # a tensor that wraps others has no numbers of its own
            raise InvalidInputError(
                "a parameter or its gradient has no memory of its own: give the optimizer plain tensors."
            )
        return OneStep(theta, grad, state, [known.count, at_theta, at_grad, *known.kept_at])

    def _renew(self, steps: list[OneStep], due: list[bool]) -> None:
        """Moves all running means on, runs the network for the tensors that are due and renews their O."""
        sums = self.arithmetic.average(steps)
        chosen = [one for one, own in zip(steps, due, strict=True) if own]
        renewed = [one for one in chosen if self._renews(one)]
        self.arithmetic.orthogonalize(renewed, self.rule.spectral_limit, self.rule.block)
        shapes = self._shapes(tuple(one.theta.shape for one in steps))
        inputs, sizes = self.arithmetic.describe(steps, due, sums, shapes, self.rule.every)
        for one, controls in zip(chosen, self.rule.controls(inputs, sizes).T.tolist(), strict=True):
            one.state["controls"] = controls

    def _renews(self, one: OneStep) -> bool:
        """Whether a tensor has an O that is renewed at this step."""
        shape = matrix_shape(one.theta.shape) if "orthogonal" in one.state else None
        return shape is not None and self.rule.renews(one.state["step"], shape)

    def _means(self, theta: Tensor) -> tuple[str, ...]:
        """The names of what is kept for each coordinate."""
        return (*MEANS, "orthogonal") if self.rule.orthogonal and theta.ndim > 1 else MEANS

    def _shapes(self, shapes: tuple[torch.Size, ...]) -> Tensor:
        """Features of tensors' shapes, [tensors, 5]; they are the same at most steps."""
        if shapes not in self._features_of:
            numbers = [shape_features(shape, self.rule.all_sides) for shape in shapes]
            self._features_of = {shapes: torch.tensor(numbers, dtype=self.dtype, device="cpu")}
        return self._features_of[shapes]


class Known:
    """A θ, its gradient and its state that were checked, to compare those of later steps with.

    Args:
        theta: θ.
        grad: its gradient.
        state: its state.

    Raises:
        InvalidInputError: a tensor of the state has no memory of its own, as one that wraps others.
    """

    def __init__(self, theta: Tensor, grad: Tensor, state: KeptState) -> None:
        *tensors, _, _ = state.values()
        at = {name: value.data_ptr() for name, value in state.items() if isinstance(value, Tensor)}
        if theta.numel() and not all(at.values()):
            raise InvalidInputError(
                "the state of a parameter has no memory of its own: give the optimizer plain tensors."
            )
        self.form = form_of(theta, grad)
        self.tensors = [*map(id, tensors)]
        self.places = [*at.values()]
        self.kept_at = [*(at[name] for name in MEANS), at.get("orthogonal", 0), at["memory"]]  # as in OneStep's row
        self.count = theta.numel()
        self.as_they_are = opened(theta, state) is theta and ordered(grad, state) is grad  # they need no copies

    def fits(self, theta: Tensor, grad: Tensor, state: KeptState) -> bool:
        """Whether all have the form in which they were checked, and the state its places."""
        if len(state) != len(self.tensors) + 2:
            return False
        *tensors, controls, step = state.values()
        return (
            [*map(id, tensors)] == self.tensors
            and [*map(Tensor.data_ptr, tensors)] == self.places
            and form_of(theta, grad) == self.form
            and type(step) is int
            and step > 0
            and type(controls) is list
            and len(controls) == CONTROLS
        )


def form_of(theta: Tensor, grad: Tensor) -> tuple:
    """What tells whether a θ and its gradient lie as others did."""
    of_theta = theta.shape, theta.stride(), theta.dtype, theta.device, theta.is_neg()
    return *of_theta, grad.shape, grad.stride(), grad.dtype, grad.device, grad.is_neg()


def arithmetic(device: torch.device, dtype: torch.dtype) -> Arithmetic:
    """The fastest one."""
    if device.type == "cuda" and dtype == torch.float32 and machine.compiled() and find_spec("triton"):
        from lightning_l2l.rules.adam_controller.gpu_kernel import GpuArithmetic, launches  # where there is Triton

        if launches(device):
            return GpuArithmetic()
    kernel = kernel_for(device, dtype)
    return Arithmetic() if kernel is None else KernelArithmetic(kernel)


def opened(theta: Tensor, state: KeptState) -> Tensor:
    """θ in the type and order of its state, with what rounding took from it before."""
    if "remainder" in state:
        theta = exact(theta, state["remainder"], state["m9"].dtype)
    return ordered(theta, state)


def ordered(tensor: Tensor, state: KeptState) -> Tensor:
    """A tensor in the type and order of the state, its numbers as they lie in memory."""
    same = tensor.dtype == state["m9"].dtype and tensor.stride() == state["m9"].stride() and not tensor.is_neg()
    return tensor if same else torch.empty_like(state["m9"]).copy_(tensor)


def close(theta: Tensor, state: KeptState, moved: Tensor) -> None:
    """Writes back what was moved; if that rounds it, keeps the rest."""
    if moved is not theta:
        round_into(theta, state.get("remainder"), moved)
