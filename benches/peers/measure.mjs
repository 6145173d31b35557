// What the drivers in JavaScript share: the request from the environment, callers at once, times, the answer as one line of JSON.

export const url = process.env.DATABASE_URL;
export const batched = process.env.MODE === "batch";
export const jobs = Number(process.env.JOBS);
export const workers = Number(process.env.WORKERS);
export const batch = Number(process.env.BATCH);

/** Runs one task a caller. */
export const atOnce = (callers, task) => Promise.all(Array.from({ length: callers }, (_, number) => task(number)));

/** How many a second, of what `work` does. */
export async function perSecond(count, work) {
  const start = process.hrtime.bigint();
  await work();
  return count / (Number(process.hrtime.bigint() - start) / 1e9);
}

/** Adds all jobs: one a call, or a batch a call, from as many callers as there are workers. */
export function enqueue(addOne, addMany) {
  const atOnceIn = batched ? batch : 1;
  let left = jobs;
  return perSecond(jobs, () =>
    atOnce(workers, async () => {
      while (left > 0) {
        const taken = Math.min(left, atOnceIn);
        left -= taken;
        await (batched ? addMany(taken) : addOne());
      }
    }),
  );
}

export const answer = (figures) => console.log(JSON.stringify(figures));
