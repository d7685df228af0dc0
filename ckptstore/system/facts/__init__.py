"""Facts about this process that tell later where, how and on which code a training ran; none of them is a secret.

Main doors: `git.ask_git` (commit and difference, asked for in a thread), `command.command_line`,
`environment.variables` (an allow-list), `versions.versions` and `versions.devices` (of what is loaded; nothing is
imported).

May import: errors, printable.
"""
