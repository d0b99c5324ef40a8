"""The loop: one optimizer step on one screen."""

import logging
import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from dino_ssl.config import RunConfig
from dino_ssl.data.loader import Batch
from dino_ssl.errors import CollapsedError, DivergedError, RunError, Stopped
from dino_ssl.training import distributed, requeue, sharding, signals
from dino_ssl.training.checkpoint import NEWEST
from dino_ssl.training.lifetime import failures_recorded, held, recorded
from dino_ssl.training.machine import check_environment, share_cores, workers
from dino_ssl.training.prepare import begin
from dino_ssl.training.run import Run
from dino_ssl.training.task import R

C = TypeVar("C", bound=RunConfig)
T = TypeVar("T")
logger = logging.getLogger("dino_ssl")


def train_to_the_end(config: C, prepare: Callable[[C, torch.device], Run[R]], report: Callable[[Run[R]], T]) -> T:
    """Train to the last step, from the newest checkpoint in `config.output_dir` if there is one; then report.

    Raises:
        UsageError: something in the configuration or the input is wrong; nothing was started.
        RunError: the run cannot go on; earlier checkpoints are untouched.
        DivergedError: the loss or the weights are no longer finite.
        CollapsedError: the networks have stopped to learn, and `collapse.on_collapse` wants more than a warning.
        Stopped: a signal came, and everything is saved.
    """
    with signals.listening(requeue.leave_at_once), failures_recorded(config.output_dir):
        device = check_environment(config)
        share_cores(config, device)
        with distributed.process_group(device, config.output_dir):
            run = prepare(config, device)
            with held(run.folder) as lock:
                begin(run)
                with recorded(run, lock), run.journal:
                    with signals.at_step_ends():
                        train(run)
                    reported = report(run)
                run.task.when_over()
                return reported


def train(run: Run[R]) -> None:
    """Take every step that is left."""
    if run.saved_step == run.step:
        run.task.after_save(run.moment(), run.store.folder / NEWEST)  # killed after a save, perhaps before this
    stop = distributed.LargestOfAll()
    while not run.is_over():
        collapse = _collapse_of(run, stop)
        if collapse is not None:
            rewind(run, collapse)


def _collapse_of(run: Run[R], stop: distributed.LargestOfAll) -> CollapsedError | None:
    """Take every step that is left, or those until the run collapses."""
    try:
        take_steps(run, stop)
    except CollapsedError as error:
        return error.with_traceback(None)  # which would hold the batches of the loop that it left
    return None


def rewind(run: Run[R], collapse: CollapsedError) -> None:
    """Go on from the last healthy checkpoint, if that is asked for and was not tried too often.

    Raises:
        CollapsedError: `collapse`, otherwise.
    """
    sentinel = run.task.sentinel
    assert sentinel is not None
    rewinds = sentinel.rewinds + 1
    if not sentinel.may_rewind or not run.rewind():
        raise collapse
    sentinel.rewinds = rewinds
    logger.warning("%s\nback at step %d, at %g of the learning rate", collapse, run.step, sentinel.rate)


def take_steps(run: Run[R], stop: distributed.LargestOfAll) -> None:
    """Take every step that is left."""
    parts = run.micro_batches(workers(run.config, run.device))
    while not run.is_over():
        now = run.task.begin_step(run.step)
        loss = accumulate_gradients(run, parts, now)
        run.journal.add(distributed.all_mean(loss))
        stepped = apply_gradients(run, now)
        run.task.after_optimizer(now, stepped=stepped)
        run.step += 1
        after_step(run, now)
        # No rank waits for this: a signal is acted upon one step after it came, by all ranks at once.
        if number := stop.exchange(signals.asked()):
            leave(run, number)


def leave(run: Run[R], number: int) -> None:
    """Save, and have this run go on later if it may.

    Raises:
        Stopped: always.
    """
    if run.saved_step != run.step:
        if not run.journal.loss_is_finite():
            raise DivergedError(f"the loss is not finite at step {run.step}; {run.task.advice}")
        check_weights(run)
        run.save()
    signals.answered()
    outcome = distributed.broadcast(requeue.answer(number) if distributed.is_main() else None)
    assert outcome is not None
    raise Stopped(outcome.reason, outcome.exit_code, outcome.text)


def accumulate_gradients(run: Run[R], parts: Iterator[Batch], now: R) -> Float[Tensor, ""]:
    """Backpropagate the micro-batches of one step; their mean loss on this rank, without gradient."""
    run.task.optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=run.device)
    for part in range(run.shares.accumulation):
        batch = next_batch(run, parts)
        is_last = part == run.shares.accumulation - 1
        with distributed.gradient_sync(run.task.parallel, enabled=is_last):
            with torch.autocast(run.device.type, run.autocast_dtype, enabled=run.autocast_dtype is not None):
                loss = run.task.loss(batch, now) / run.shares.accumulation
            run.scaler.scale(loss).backward()
        total += loss.detach()
    return total


def next_batch(run: Run[R], parts: Iterator[Batch]) -> Batch:
    with run.journal.waiting():
        batch = next(parts)
    run.broken.add(batch.broken)
    if not batch.views:
        raise RunError(
            f"{len(batch.broken)} images in a row could not be read, the last {batch.broken[-1][0]} "
            f"({batch.broken[-1][1]}); repair those listed in {run.broken.path}"
        )
    return batch


def apply_gradients(run: Run[R], now: R) -> bool:
    """Clip and step; False if the fp16 scaler skipped the step."""
    optimizer = run.task.optimizer
    run.scaler.unscale_(optimizer)
    run.task.before_optimizer(now)
    if not run.scaler.is_enabled():
        optimizer.step()
        return True
    scale = run.scaler.get_scale()
    run.scaler.step(optimizer)
    run.scaler.update()
    return run.scaler.get_scale() >= scale


def after_step(run: Run[R], now: R) -> None:
    """Log, evaluate and save, each when it is due."""
    moment, task = run.moment(), run.task
    saving = moment.is_over or run.step % (run.config.checkpoint.every_steps or task.steps_per_epoch) == 0
    saving = saving or task.wants_checkpoint(moment)
    # A checkpoint is never written without a look at the loss before it.
    if saving or run.journal.is_due(run.step):
        log(run, now)
    if moment.is_epoch_end or moment.is_over:
        task.end_epoch(moment, run.journal)
    if moment.is_epoch_end:
        run.journal.end_epoch(run.step, run.epoch, lr=now.lr, weight_decay=now.weight_decay)
    if saving:
        check_weights(run)
        with run.journal.paused():
            run.save()
            task.after_save(moment, run.store.folder / NEWEST)


def log(run: Run[R], now: R) -> None:
    """Write this step's numbers: the only place that waits for the device.

    Raises:
        DivergedError: the loss is not finite; every rank sees the same mean, so all stop together.
        CollapsedError: as `Sentinel.weigh`.
    """
    sentinel = run.task.sentinel
    watched = sentinel.look() if sentinel else {}
    loss = run.journal.log(run.step, run.step / run.task.steps_per_epoch, {**now.numbers(), **watched})
    if not math.isfinite(loss):
        raise DivergedError(f"the loss is {loss} at step {run.step}; {run.task.advice}")
    if sentinel:
        sentinel.weigh(run.step, run.journal.latest)


def check_weights(run: Run[R]) -> None:
    """Look at the weights before they are saved: the loss of this step is that of the weights before it.

    Raises:
        DivergedError: a weight is not finite, or is too large to be squared; all ranks hold the same.
    """
    norms = sharding.norms([parameter.detach() for parameter in run.task.network.parameters()])
    if not norms.isfinite().all():
        raise DivergedError(f"the weights are no longer finite at step {run.step}; {run.task.advice}")
