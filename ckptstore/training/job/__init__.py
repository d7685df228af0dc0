"""A fit that several processes run together: which they are, what they agree on, and the store as each of them has it.

Process 0 has the store, with its run, manifest and lock. The others have neither: they write their part of a payload,
and read what process 0 offers. Sessions and saves are the same on all processes, since each calls a `FitStore`.
Main doors: `open_in_job.open_in_job` (a loop by hand), `fit_job.FitJob`, `leading_store.LeadingStore` (process 0),
`joined_store.JoinedStore` (the others; for a fit `joined_fit_store.JoinedFitStore`), `job_stop.JobStop` (a signal on
one process stops all at the same step), `peer_watch.PeerWatch` (another process cannot go on) and `leaving.Leaving` (a
step that waits for it is left).

May import: what `training` may.
"""
