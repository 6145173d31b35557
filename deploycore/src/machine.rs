//! On the machine: the agent, its disk and the runner of processes.
