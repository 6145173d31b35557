// graphile-worker: its own runner, with a local queue and batched completions in mode batch.

import { createRequire } from "node:module";
import { Logger, makeWorkerUtils, run } from "graphile-worker";
import { answer, batch, batched, enqueue, jobs, perSecond, url, workers } from "./measure.mjs";

const { version } = createRequire(import.meta.url)("graphile-worker/package.json");
const logger = new Logger(() => () => {});
const utils = await makeWorkerUtils({ connectionString: url, logger, maxPoolSize: workers });
await utils.migrate();
const enqueue_per_s = await enqueue(
  () => utils.addJob("noop", {}),
  (many) => utils.addJobs(Array.from({ length: many }, () => ({ identifier: "noop", payload: {} }))),
);

let done = 0;
let allDone;
const finished = new Promise((resolve) => (allDone = resolve));
const noop = async () => {
  done += 1;
  if (done === jobs) allDone();
};
const batches = { localQueue: { size: batch }, completeJobBatchDelay: 0, failJobBatchDelay: 0 };
const worker = { connectionString: url, concurrentJobs: workers, maxPoolSize: workers + 4, ...(batched ? batches : {}) };
const drain_per_s = await perSecond(jobs, async () => {
  const runner = await run({ preset: { worker }, taskList: { noop }, logger, noHandleSignals: true });
  await finished;
  // It returns when the last completions are committed.
  await runner.stop();
});
const left = await utils.withPgClient((client) => client.query("SELECT count(*)::int AS n FROM graphile_worker.jobs"));
if (left.rows[0].n !== 0) throw new Error(`${left.rows[0].n} jobs are left`);
await utils.release();
answer({ version, enqueue_per_s, drain_per_s });
process.exit(0);
