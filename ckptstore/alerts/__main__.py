"""The program of the process that sends alerts; see `ckptstore.alerts.companion`."""

from __future__ import annotations

from ckptstore.alerts.companion import main

if __name__ == "__main__":
    main()
