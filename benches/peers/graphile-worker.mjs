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
const isEmpty = async () => {
  const left = await utils.withPgClient((client) => client.query("SELECT FROM graphile_worker.jobs LIMIT 1"));
  return left.rowCount === 0;
};
let runner;
const drain_per_s = await perSecond(jobs, async () => {
  runner = await run({ preset: { worker }, taskList: { noop }, logger, noHandleSignals: true });
  await finished;
  // The last completions are still on their way.
  while (!(await isEmpty())) await new Promise((resolve) => setTimeout(resolve, 2));
});
await runner.stop();
await utils.release();
answer({ version, enqueue_per_s, drain_per_s });
process.exit(0);
