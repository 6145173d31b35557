"""procrastinate: its own worker. It adds jobs in batches; it takes and ends them one by one, so mode batch tells of enqueueing alone."""

import asyncio
import json
import logging
import os
import time
from importlib.metadata import version

import procrastinate

URL, BATCHED = os.environ["DATABASE_URL"], os.environ["MODE"] == "batch"
JOBS, WORKERS, BATCH = (int(os.environ[name]) for name in ("JOBS", "WORKERS", "BATCH"))

logging.disable(logging.CRITICAL)
app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=URL, min_size=1, max_size=WORKERS))
done = 0


@app.task(name="noop")
async def noop():
    global done
    done += 1


async def enqueue():
    left = JOBS

    async def caller():
        nonlocal left
        while left > 0:
            taken = min(left, BATCH if BATCHED else 1)
            left -= taken
            if BATCHED:
                await noop.batch_defer_async(*({} for _ in range(taken)))
            else:
                await noop.defer_async()

    start = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(WORKERS)))
    return JOBS / (time.perf_counter() - start)


async def drain():
    start = time.perf_counter()
    await app.run_worker_async(
        concurrency=WORKERS, wait=False, listen_notify=False, install_signal_handlers=False
    )
    taken = time.perf_counter() - start
    if done != JOBS:
        raise SystemExit(f"{done} of {JOBS} jobs were done")
    return JOBS / taken


async def main():
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        figures = {"version": version("procrastinate"), "enqueue_per_s": await enqueue()}
        figures["drain_per_s"] = None if BATCHED else await drain()
        print(json.dumps(figures))


asyncio.run(main())
