"""The loop: one optimizer step on one screen."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from dino_ssl.config import PretrainConfig
from dino_ssl.data.loader import Batch
from dino_ssl.data.transfer import normalize
from dino_ssl.errors import DivergedError, RunError, Stopped
from dino_ssl.training import distributed, evaluation_jobs, requeue, sharding, signals
from dino_ssl.training.checkpoint import NEWEST
from dino_ssl.training.final_report import Report, final_report
from dino_ssl.training.lifetime import failures_recorded, held, recorded
from dino_ssl.training.optim import clip_gradients, drop_last_layer_gradients, set_rates
from dino_ssl.training.plan import Rates
from dino_ssl.training.prepare import begin, check_environment, prepare, share_cores, workers
from dino_ssl.training.run import Run

AGAINST_DIVERGENCE = (
    "start anew in another --output-dir with a lower --optim.lr or --dino.teacher-temperature, "
    "a longer --optim.warmup-epochs, or --precision fp32"
)


def pretrain(config: PretrainConfig) -> Report:
    """Pretrain to the end of the plan, from the newest checkpoint in `config.output_dir` if there is one.

    Raises:
        UsageError: something in the configuration or the input is wrong; nothing was started.
        RunError: the run cannot go on; earlier checkpoints are untouched.
        DivergedError: the loss or the weights are no longer finite.
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
                    report = final_report(run)
                # After the end is recorded: a job that is done later takes its results in itself.
                if distributed.is_main() and config.evaluate.every_epochs:
                    evaluation_jobs.collect_afterwards(config.output_dir)
                return report


def train(run: Run) -> None:
    """Take every step that is left."""
    send_evaluation(run)  # of a checkpoint after which the run was killed
    stop = distributed.LargestOfAll()
    parts = run.micro_batches(workers(run.config, run.device)) if not run.is_over() else iter(())
    while not run.is_over():
        now = run.plan.at(run.step)
        set_rates(run.optimizer, lr=now.lr, weight_decay=now.weight_decay)
        loss = accumulate_gradients(run, parts, now)
        run.journal.add(distributed.all_mean(loss))
        stepped = apply_gradients(run, now)
        run.method.update_center()
        if stepped:
            run.method.update_teacher(now.momentum)
        run.step += 1
        after_step(run, now)
        # No rank waits for this: a signal is acted upon one step after it came, by all ranks at once.
        if number := stop.exchange(signals.asked()):
            leave(run, number)


def leave(run: Run, number: int) -> None:
    """Save, and have this run go on later if it may.

    Raises:
        Stopped: always.
    """
    if run.saved_step != run.step:
        if not run.journal.loss_is_finite():
            raise DivergedError(f"the loss is not finite at step {run.step}; {AGAINST_DIVERGENCE}")
        check_weights(run)
        run.save()
    signals.answered()
    outcome = distributed.broadcast(requeue.answer(number) if distributed.is_main() else None)
    assert outcome is not None
    raise Stopped(outcome.reason, outcome.exit_code, outcome.text)


def accumulate_gradients(run: Run, parts: Iterator[Batch], now: Rates) -> Float[Tensor, ""]:
    """Backpropagate the micro-batches of one step; their mean loss on this rank, without gradient."""
    run.optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=run.device)
    for part in range(run.shares.accumulation):
        views = normalized(run, next_batch(run, parts))
        is_last = part == run.shares.accumulation - 1
        with distributed.gradient_sync(run.method.parallel_student, enabled=is_last):
            with torch.autocast(run.device.type, run.autocast_dtype, enabled=run.autocast_dtype is not None):
                loss = run.method.loss(views, now.teacher_temperature) / run.shares.accumulation
            run.scaler.scale(loss).backward()
        total += loss.detach()
    return total


def next_batch(run: Run, parts: Iterator[Batch]) -> Batch:
    with run.journal.waiting():
        batch = next(parts)
    run.broken.add(batch.broken)
    if not batch.views:
        raise RunError(
            f"{len(batch.broken)} images in a row could not be read, the last {batch.broken[-1][0]} "
            f"({batch.broken[-1][1]}); repair those listed in {run.broken.path}"
        )
    return batch


def normalized(run: Run, batch: Batch) -> list[Float[Tensor, "_v b c _s _s"]]:
    """Bytes to floats."""
    crops = run.config.crops
    return [normalize(view, crops.mean, crops.std) for view in batch.views]


def apply_gradients(run: Run, now: Rates) -> bool:
    """Clip and step; False if the fp16 scaler skipped the step, in which case the teacher must not move either."""
    run.scaler.unscale_(run.optimizer)
    per_tensor = run.config.compat == "dino"
    clip_gradients(run.method.student.parameters(), run.config.optim.clip_grad, per_tensor=per_tensor)
    if now.last_layer_is_frozen:
        drop_last_layer_gradients(run.method.student)
    if not run.scaler.is_enabled():
        run.optimizer.step()
        return True
    scale = run.scaler.get_scale()
    run.scaler.step(run.optimizer)
    run.scaler.update()
    return run.scaler.get_scale() >= scale or run.config.compat == "dino"


def after_step(run: Run, now: Rates) -> None:
    """Log, evaluate and save, each when it is due."""
    saving = run.is_over() or run.step % (run.config.checkpoint.every_steps or run.plan.steps_per_epoch) == 0
    saving = saving or sends_evaluation(run)
    # A checkpoint is never written without a look at the loss before it.
    if saving or run.journal.is_due(run.step):
        log(run, now)
    if run.at_epoch_end():
        end_epoch(run, now)
    if saving:
        check_weights(run)
        with run.journal.paused():
            run.save()
            send_evaluation(run)


def sends_evaluation(run: Run) -> bool:
    """Whether the checkpoint of this step is evaluated by a job of its own."""
    ends = run.is_over() or run.at_epoch_end()
    return run.step > 0 and ends and evaluation_jobs.is_due(run.config, run.epoch, is_over=run.is_over())


def send_evaluation(run: Run) -> None:
    """Start that job, if it was not started before."""
    if sends_evaluation(run) and distributed.is_main():
        evaluation_jobs.send(run.config, run.store.folder / NEWEST, run.step)


def log(run: Run, now: Rates) -> None:
    """Write this step's numbers: the only place that waits for the device.

    Raises:
        DivergedError: the loss is not finite; every rank sees the same mean, so all stop together.
    """
    rates = {
        "train/lr": now.lr,
        "train/weight_decay": now.weight_decay,
        "train/momentum": now.momentum,
        "train/teacher_temperature": now.teacher_temperature,
    }
    loss = run.journal.log(run.step, run.step / run.plan.steps_per_epoch, rates)
    if not math.isfinite(loss):
        raise DivergedError(f"the loss is {loss} at step {run.step}; {AGAINST_DIVERGENCE}")


def check_weights(run: Run) -> None:
    """Look at the weights before they are saved: the loss of this step is that of the weights before it.

    Raises:
        DivergedError: a weight is not finite, or is too large to be squared; all ranks hold the same.
    """
    norms = sharding.norms([parameter.detach() for parameter in run.method.student.parameters()])
    if not norms.isfinite().all():
        raise DivergedError(f"the weights are no longer finite at step {run.step}; {AGAINST_DIVERGENCE}")


def end_epoch(run: Run, now: Rates) -> None:
    """k-NN of the teacher if it is due, what evaluation jobs have found meanwhile, and the epoch's line."""
    if run.knn is not None and run.knn.is_due(run.epoch):
        with run.journal.paused():
            found = run.knn.measure(run.teacher_backbone(), max_images=run.config.knn.max_images)
        run.journal.knn(run.step, run.epoch, found.top1["teacher"])
    if run.config.evaluate.every_epochs and distributed.is_main():
        for step, numbers in evaluation_jobs.collect(run.folder):
            run.journal.evaluated(run.step, run.epoch, step, numbers)
    run.journal.end_epoch(run.step, run.epoch, lr=now.lr, weight_decay=now.weight_decay)
