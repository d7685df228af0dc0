"""Alerts about runs that nobody watches: sent to a command or a webhook, in a process of its own.

Main door: `alerts.Alerts`, which starts that process and hands alerts to it. `alert` is the record and what a webhook
gets; `delivery` sends one within bounded time; `repeats` counts those that come again and again; `sender_process` is
that process, in which `store_monitor` looks at the store now and then.

May import: report, store, background, storage, system and the words; never Keras, training or terminals.
"""
