"""A supervisor over stand-in processes, run as a process of its own: `python stand_in_platform.py SCENARIO`.

`$TIDEGATE_HOME` is the home. The parts are small Python programs that say they are ready by a file.
"""

import os
import sys
from pathlib import Path

import tidegate.supervisor
from tidegate.launcher import HomeLock
from tidegate.parts import platform_environment, prepare_home
from tidegate.settings import load_settings
from tidegate.supervisor import Part, Supervisor

SLEEPER = """
import os, pathlib, signal, sys, time
name, folder = sys.argv[1], pathlib.Path(sys.argv[2])
def stop(*_):
    with open(folder / "stopped", "a") as f: f.write(name + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
(folder / f"{name}.ready").write_text(str(os.getpid()))
print(name, "is there", flush=True)
while True: time.sleep(0.05)
"""

# Starts a grandchild in a session of its own that ignores SIGTERM and outlives it, as Ray's processes would.
PARENT = """
import os, pathlib, subprocess, sys, time
name, folder = sys.argv[1], pathlib.Path(sys.argv[2])
code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
with open(folder / "grandchildren", "a") as f: f.write(f"{child.pid}\\n")
(folder / f"{name}.ready").write_text(str(os.getpid()))
while True: time.sleep(0.05)
"""

DEAF = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
(pathlib.Path(sys.argv[2]) / f"{sys.argv[1]}.ready").write_text(str(os.getpid()))
while True: time.sleep(0.05)
"""

BROKEN = """
import sys
print("starting", flush=True)
print("no GPU here, and no hope", file=sys.stderr, flush=True)
sys.exit(7)
"""

SCENARIOS = {
    "plain": {"ray": SLEEPER, "controller": SLEEPER, "gateway": SLEEPER},
    "grandchild": {"ray": PARENT, "gateway": SLEEPER},
    "deaf": {"gateway": DEAF},
    "broken": {"ray": BROKEN, "gateway": SLEEPER},
    "drift-broken": {"gateway": SLEEPER, "drift": BROKEN},
}


def main() -> int:
    tidegate.supervisor.SWEEP_GRACE_S = 0.2
    settings = load_settings()
    prepare_home(settings)
    lock = HomeLock(settings)
    if not lock.acquire():
        print("locked", flush=True)
        return 3
    folder = Path(os.environ["STAND_IN_FOLDER"])
    folder.mkdir(exist_ok=True)

    def part(name: str, program: str) -> Part:
        def ready(started_at: float) -> bool:
            path = folder / f"{name}.ready"
            return path.exists() and path.stat().st_mtime >= started_at - 0.05

        argv = (sys.executable, "-S", "-c", program, name, str(folder))
        return Part(name, name.title(), argv, ready, stop_s=1.0, vital=name != "drift")

    parts = [part(name, program) for name, program in SCENARIOS[sys.argv[1]].items()]
    supervisor = Supervisor(settings, parts, platform_environment(settings))
    supervisor.running()
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main())
