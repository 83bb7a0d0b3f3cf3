"""How many cases of each class a drill tries."""

MODULES = ("corruption", "soak", "storage", "memory", "numbers", "worlds")

FULL = {
    "SIGKILL: start": 100,
    "SIGKILL: train": 400,
    "SIGKILL: validate": 150,
    "SIGKILL: save": 300,
    "SIGKILL: export": 100,
    "SIGKILL: evaluate": 150,
    "SIGTERM": 50,
    "SIGINT twice": 50,
    "STOP and CONT": 50,
    "bit flip": 200,
    "truncation": 50,
    "bit flip: run folder": 40,
    "torn last line": 30,
    "second run": 20,
}
QUICK = {
    "SIGKILL: start": 1,
    "SIGKILL: train": 2,
    "SIGKILL: validate": 1,
    "SIGKILL: save": 2,
    "SIGKILL: export": 1,
    "SIGKILL: evaluate": 2,
    "SIGTERM": 1,
    "SIGINT twice": 1,
    "STOP and CONT": 1,
    "bit flip": 5,
    "truncation": 2,
    "bit flip: run folder": 2,
    "torn last line": 1,
    "second run": 1,
}
