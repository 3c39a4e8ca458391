"""A pipeline's own loop, stopped before each step and asked about other states than its own.

The pipeline's ``__call__`` runs in a thread. In its scheduler's place is a stand-in (stand_in.py), whose
``step`` hands the model output to whoever asked and waits for the next question. So the pipeline encodes
its prompts once, guides, packs and passes on as ever, and never knows whose states these are.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import threading
import weakref
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from .stand_in import CALLS, Opening, Stopped, stand_in

_STOP = object()
_ENDED = object()


class Run:
    """One call of the pipeline, in a thread of its own.

    Attributes:
        times: The pipeline's list of time steps.
        asked: The state in question; None until the first step. version: How often it had been changed.
        left: Questions until the list of time steps ends.
        stopping: Whether it ends at its next step.
    """

    def __init__(self, loop: Loop) -> None:
        self.questions: SimpleQueue[Any] = SimpleQueue()
        self.answers: SimpleQueue[Any] = SimpleQueue()
        self.times = torch.empty(0)
        self.asked: Tensor | None = None
        self.version, self.left, self.stopping = 0, CALLS, False
        work = (contextvars.copy_context(), self, loop.pipe, loop.call, _thread_state())
        name = f"ddim_ode: {loop.name}"
        self.thread = threading.Thread(target=_work, args=work, name=name, daemon=True)

    def answered(self) -> Any:
        """What the pipeline hands over next: an answer, an :class:`Opening`, or ``_ENDED``.

        What the pipeline raises is raised here. Ctrl-C ends the waiting, and the run at its next step.
        """
        try:
            outcome = self.answers.get()
        except BaseException:
            self.stop()
            raise
        if isinstance(outcome, BaseException):
            self.stopping = True
            try:
                raise outcome
            finally:
                del outcome  # whose traceback holds this frame
        return outcome

    def stop(self) -> None:
        self.stopping = True
        self.questions.put(_STOP)

    def turn(self, answer: Any) -> Tensor:
        """In the pipeline's thread: hand an answer over, and wait for the next state in question."""
        self.left -= 1
        self.answers.put(answer)
        del answer
        question = self.questions.get()
        if question is _STOP:
            raise Stopped
        state: Tensor
        state, t, stream = question
        if stream is not None:
            torch.cuda.set_stream(stream)
        self.times.copy_(t.expand_as(self.times))
        self.asked, self.version = state, 0 if state.is_inference() else state._version
        return state


def _work(
    context: contextvars.Context, run: Run, pipe: Any, call: Mapping[str, Any], state: list[Any]
) -> None:
    outcome: Any = _ENDED
    try:
        with contextlib.ExitStack() as stack:
            for manager in state:
                stack.enter_context(manager)
            context.run(pipe, **call)
    except Stopped:
        pass
    except BaseException as error:
        outcome = error
    run.answers.put(outcome)


def _thread_state() -> list[Any]:
    """What torch keeps for each thread, as it is in this one: autocast, default device, CUDA stream."""
    state: list[Any] = []
    for kind in ("cpu", "cuda", "mps", "xpu"):
        with contextlib.suppress(RuntimeError):  # a kind that this build does not know
            if torch.is_autocast_enabled(kind):
                dtype = torch.get_autocast_dtype(kind)
                cached = torch.is_autocast_cache_enabled()
                state.append(torch.autocast(kind, dtype, cache_enabled=cached))
    if (device := torch.get_default_device()).type != "cpu":
        state.append(device)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state.append(torch.cuda.device(torch.cuda.current_device()))
        state.append(torch.cuda.stream(torch.cuda.current_stream()))
    return state


class Loop:
    """The pipeline's network, asked at a batch of the pipeline's own and one time: ``loop(x, t)``.

    Attributes:
        pipe, call: The pipeline, and the arguments of its call.
        times_of: The network times of the steps of a scheduler.
        level_of: The entry of the scheduler's ``sigmas`` at a network time.
        opening: The first step of the first run.
        run: The run under way.
        calls: How often the pipeline asked its network, at each start included.
        spoiled: Whether somebody else has called the pipeline meanwhile.
        like: What the scheduler's own step returns.
    """

    def __init__(
        self,
        pipe: Any,
        call: Mapping[str, Any],
        times_of: Callable[[Any], Tensor],
        level_of: Callable[[float], float],
    ) -> None:
        self.pipe, self.call, self.times_of, self.level_of = pipe, dict(call), times_of, level_of
        self.name = type(pipe).__name__
        self.run: Run | None = None
        self.calls, self.spoiled, self.closed = 0, False, False
        self.like: Any = None
        self._lock = threading.Lock()
        self._before = dict(pipe.__dict__)
        self.scheduler = stand_in(pipe.scheduler, self)
        pipe.__dict__["scheduler"] = self.scheduler  # past the pipeline's record of its parts
        pipe.__dict__["_progress_bar_config"] = {"disable": True}
        try:
            self.opening = self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> Opening:
        self.run = Run(self)
        self.run.thread.start()  # it looks for its run in there
        opening = self.run.answered()
        if opening is _ENDED:
            raise ValueError(
                f"{self.name} never called step of pipe.scheduler: give the pipeline of the stage that "
                "does, and arguments with which it takes at least one step"
            )
        self.calls += 1
        assert isinstance(opening, Opening)
        return opening

    def stepped(self, x: Tensor, return_dict: bool) -> Any:
        """The state x as the scheduler's own step would return it."""
        from diffusers.schedulers.scheduling_utils import SchedulerOutput

        like = SchedulerOutput(prev_sample=x) if self.like is None else self.like
        if not return_dict:
            return (x, *like.to_tuple()[1:])
        out = copy.copy(like)
        out["prev_sample"] = x
        return out

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """What the pipeline hands to its scheduler's step at x, a batch of its own, and t (1,)."""
        run = self.run
        if run is not None and threading.current_thread() is run.thread:
            raise RuntimeError(
                f"{self.name} asks itself: a callback of the pipeline must not call its model"
            )
        stream = torch.cuda.current_stream(x.device) if x.is_cuda else None
        with self._lock:  # threads that ask take turns
            for attempt in range(3):
                self._check_open()
                run = self.run
                if run is None or attempt or run.stopping or run.left < 1:
                    self._finish()
                    self._open()
                    run = self.run
                assert run is not None
                run.questions.put((x, t, stream))
                answer = run.answered()
                if answer is not _ENDED:
                    self.calls += 1
                    out: Tensor = answer
                    return out
        raise RuntimeError(
            f"{self.name} ends its run whenever it is asked (does a callback set pipe.interrupt?)"
        )

    def _check_open(self) -> None:
        if self.closed:
            raise RuntimeError(
                f"this model of {self.name} is closed; call from_pipeline again, and use the model inside "
                "of its with block"
            )
        if self.spoiled or self.pipe.__dict__.get("scheduler") is not self.scheduler:
            raise RuntimeError(
                f"{self.name} was called, or given another scheduler, while from_pipeline was using it, "
                "and its settings are no longer the model's; close the model, and call from_pipeline again"
            )

    def _finish(self) -> None:
        """End the run under way, and wait until its thread has ended."""
        run = self.run
        if run is not None:
            run.stop()
            if threading.current_thread() is not run.thread:
                run.thread.join()
            self.run = None

    def close(self) -> None:
        """End the run, and leave the pipeline as it was. A second time nothing happens."""
        if self.closed:
            return
        self.closed = True
        try:
            self._finish()
        finally:
            self._restore()

    def _restore(self) -> None:
        now, before = self.pipe.__dict__, self._before
        if now.get("scheduler") is self.scheduler:
            now["scheduler"] = before["scheduler"]
        for name in [name for name in now if name.startswith("_") and name not in before]:
            del now[name]  # what a call keeps in the pipeline: its guidance, its number of steps
        now.update({name: value for name, value in before.items() if name.startswith("_")})
        with contextlib.suppress(AttributeError):
            self.pipe.maybe_free_model_hooks()  # as its own call does at its end


class PipelineNetwork:
    """``net(x, t, row)`` of a pipeline: any batch, in batches of the pipeline's own, one level each.

    row (b,) says which of the pipeline's rows, modulo their number, each sample belongs to.

    Attributes:
        twice: Whether the pipeline's state holds each sample two times (DiT's, for guidance).
        sign: What its answers are multiplied by.
    """

    twice, sign = False, 1.0

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        weakref.finalize(self, loop.close)  # the thread keeps the loop alive, and nothing this

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            f"a model of a {self.loop.name} is a call of it under way, which cannot be copied or pickled; "
            "load(...) takes its network"
        )

    def __call__(self, x: Tensor, t: Tensor, row: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError(
                "a pipeline computes no gradients (it runs under torch.no_grad()): its model has no "
                "likelihood, divergence or differentiable=; ddim_ode.interop.diffusers.load takes the "
                "network"
            )
        like = self.loop.opening.arguments["sample"]
        size = len(like) // 2 if self.twice else len(like)
        x, rows, everyone, out = x.to(like.device), row.tolist(), list(range(len(x))), None
        for time, samples in _levels(t):
            for batch in _batches(rows, samples, size):
                index = [max(i, -1 - i) for i in batch]
                asked = x if index == everyone else x[index]
                answer = self.loop(torch.cat([asked, asked]) if self.twice else asked, time)[:size]
                answer = answer if self.sign == 1 else answer * self.sign
                if batch == everyone:
                    return answer.to(t.device)
                slots = [slot for slot, i in enumerate(batch) if i >= 0]
                out = answer.new_empty((len(x), *answer.shape[1:])) if out is None else out
                out[[batch[slot] for slot in slots]] = answer[slots]
        assert out is not None, "there is a sample"
        return out.to(t.device)


def _levels(t: Tensor) -> list[tuple[Tensor, list[int]]]:
    """The different times, each (1,), and the samples at each."""
    if len(t) == 1 or t.stride(0) == 0:  # one number, expanded: nothing waits for the device
        return [(t[:1], list(range(len(t))))]
    at: dict[float, list[int]] = {}
    for i, value in enumerate(t.tolist()):
        at.setdefault(value, []).append(i)
    return [(t[same[0] : same[0] + 1], same) for same in at.values()]


def _batches(rows: list[int], samples: list[int], size: int) -> list[list[int]]:
    """Batches of the pipeline: for each of its rows a sample, or −1 − i to pad with sample i."""
    waiting: list[list[int]] = [[] for _ in range(size)]
    for i in samples:
        waiting[rows[i] % size].append(i)
    return [
        [
            queue[k] if k < len(queue) else -1 - next(q[k] for q in waiting if k < len(q))
            for queue in waiting
        ]
        for k in range(max(map(len, waiting)))
    ]
