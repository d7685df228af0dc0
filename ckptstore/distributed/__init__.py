"""Several processes that train one model together: which there are, messages between them, and what they agree on.

No framework is imported here, and no file is touched: `ckptstore.keras.private` finds the job and its messages, and
callers write the payloads. Main doors: `job.Job` (which process this is, of how many), `messages.Messages` (small
texts under keys that are written once), `service.ServiceMessages` (over a framework's key-value service, each call
within a limit), `memory.MemoryService` (within one process), `meeting` (the processes of a fit find each other, past
what an earlier job left), `save_records` (what is told of a save), `saving` and `resuming` (the two sides of a save and
of a resume, as state machines that make one call a step), `driver.drive` (runs such a machine), `agreements` (what
process 0 decides for all, and who has given up), `batch_counts` (whether all have seen as many batches), `stopping`
(where all stop), `session.JobSession` (the saves and the resume of one fit).

Process 0 leads: it alone announces and decides. Nothing is a collective operation, and nothing waits without a limit.

May import: errors.
"""
