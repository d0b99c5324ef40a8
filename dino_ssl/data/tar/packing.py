"""Any source -> shards: images in one random order, encoded by several threads, written one shard after the other."""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from dino_ssl.data.order import Permutation, ShardOrder
from dino_ssl.data.sources import Source
from dino_ssl.data.streams import Purpose, stream
from dino_ssl.data.tar.pack_file import PackedShard, PackFile, read_pack_file, start_or_resume
from dino_ssl.data.tar.pack_images import Images, Order, Packing, Sample
from dino_ssl.data.tar.shard_index_files import INDEX_FILE, MADE_BY, PACK_FILE, write_index
from dino_ssl.data.tar.shard_writer import ShardWriter, new_shard
from dino_ssl.durable import naming
from dino_ssl.errors import RunError, UsageError

BUFFER = 65_536  # images that are shuffled together where the source itself consists of shards
ORDER_PROBES = 4096  # positions by which two orders are told apart


def pack(source: Source, packing: Packing, advance: Callable[[int], object]) -> PackFile:
    """Write the shards of a source; those that an earlier call finished are kept if their checksums hold.

    Args:
        advance: called with the number of images that were dealt with since the last call.
    Raises:
        UsageError: the folder holds other shards, or the images have too many channels.
        RunError: the disk refuses, another process packs into the folder, or no image can be read.
    """
    order = _order(source, packing.seed)
    made = start_or_resume(_new(source, packing, order))
    with naming(packing.folder):
        packing.folder.mkdir(parents=True, exist_ok=True)
    with _alone(packing.folder), ThreadPoolExecutor(packing.threads) as pool:
        images = Images(source, packing, order, pool)
        try:
            _write_all(made, packing, images, advance)
        finally:
            images.cancel()
    _finish(made)
    return made


def read(folder: Path) -> PackFile:
    """What was packed into a folder.

    Raises:
        UsageError: there is no index.json, or it is damaged.
    """
    made = read_pack_file(folder)
    if made is None:
        raise UsageError(
            f"{folder} holds no {PACK_FILE}, and so no checksums; it is not a folder that `{MADE_BY}` wrote"
        )
    return made


def verify(made: PackFile, advance: Callable[[int], object]) -> None:
    """Compare every shard with its checksum.

    Args:
        advance: called with 1 after each shard.
    Raises:
        RunError: names the shards that are missing or differ, or says that packing did not finish.
    """
    problems = [] if made.complete else ["packing did not finish"]
    for number, shard in made.shards.items():
        if not made.is_whole(number):
            problems.append(f"{shard.name} {'differs' if (made.folder / shard.name).exists() else 'is missing'}")
        advance(1)
    if problems:
        raise RunError(f"{made.folder}: {', '.join(problems)}; the same `{MADE_BY}` again writes them anew")


def _new(source: Source, packing: Packing, order: Order) -> PackFile:
    probes = order(np.linspace(0, len(source) - 1, min(len(source), ORDER_PROBES)).astype(np.int64))
    options = {
        "images": len(source),
        "fingerprint": source.fingerprint(),
        "shard-size": packing.shard_bytes,
        "samples-per-shard": packing.shard_samples,
        "short-side": packing.short_side,
        "quality": packing.quality if packing.short_side else None,
        "seed": packing.seed,
        "output": packing.pattern,
        # Another version, of this or of NumPy, may shuffle otherwise.
        "order": hashlib.sha256(probes.tobytes()).hexdigest()[:16],
    }
    return PackFile(packing.folder, source.name, options, packing.encoding, list(source.classes))


def _order(source: Source, seed: int) -> Order:
    """Position -> index: a random permutation; of shards their random order, and images shuffled within a buffer."""
    if source.shard_sizes is not None:
        return ShardOrder(source.shard_sizes, BUFFER, seed, epoch=0)
    return Permutation(len(source), stream(seed, Purpose.ORDER, 0))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second process from packing into the same folder; gone with the process.

    Raises:
        RunError: there is another one.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RunError(f"another process packs into {folder}; wait for it, or choose another folder") from None
    except OSError:
        pass  # some network disks have no locks
    try:
        yield
    finally:
        os.close(descriptor)


def _write_all(made: PackFile, packing: Packing, images: Images, advance: Callable[[int], object]) -> None:
    number = 0
    while images.position < made.options["images"]:
        shard = made.shards.get(number)
        if shard and shard.first == images.position and made.is_whole(number):
            advance(shard.end - shard.first)
            images.go_to(shard.end)
        else:
            _begin(made)
            made.shards[number] = _write(number, packing, images, advance)
            made.save()
        number += 1
    for extra in range(number, len(made.shards)):
        (made.folder / made.shards.pop(extra).name).unlink(missing_ok=True)


def _begin(made: PackFile) -> None:
    """Say that the folder is not complete, before the first shard is written."""
    if not made.complete and (made.folder / PACK_FILE).exists():
        return
    made.complete = False
    made.save()
    (made.folder / INDEX_FILE).unlink(missing_ok=True)


def _write(number: int, packing: Packing, images: Images, advance: Callable[[int], object]) -> PackedShard:
    """Write one shard from the next images; those that follow it and cannot be read are counted with it."""
    first, skipped, name = images.position, [], packing.pattern % number
    with new_shard(packing.folder / name) as writer:
        while (prepared := images.next()) is not None:
            if not isinstance(prepared, Sample):
                skipped.append(prepared)
            elif _is_full(writer, prepared, packing):
                break
            else:
                writer.add(prepared.key, prepared.contents)
            images.take()
            advance(1)
        if not writer.samples:
            reason = "; ".join(": ".join(entry) for entry in skipped[:3])
            raise RunError(f"none of {len(skipped):,} images can be read: {reason}")
    return PackedShard(name, first, images.position, writer.samples, writer.num_bytes, writer.sha256, skipped)


def _is_full(writer: ShardWriter, sample: Sample, packing: Packing) -> bool:
    if packing.shard_samples is not None and writer.samples >= packing.shard_samples:
        return True
    too_long = packing.shard_bytes is not None and writer.size_with(sample.contents) > packing.shard_bytes
    return writer.samples > 0 and too_long


def _finish(made: PackFile) -> None:
    """Say that it is complete, once everything else is on the disk."""
    if made.complete and (made.folder / INDEX_FILE).exists():
        return
    with naming(made.folder / INDEX_FILE):
        write_index(made.folder, [shard.name for shard in made.shards.values()])
    made.save_skipped()
    made.complete = True
    made.save()
