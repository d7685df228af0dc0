"""The program of the process that sends alerts; see `ckptstore.alerts.sender_process`."""

from __future__ import annotations

from ckptstore.alerts.sender_process import main

if __name__ == "__main__":
    main()
