//! From a commit to stored bytes: the worker with its builder, and the reaper.
