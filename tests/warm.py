"""The command `emotion-study` without its imports: each run is a fork of a process that has them.

`forked_runs` opens that process. A line of JSON on its input begins a run; its answer is the
number of the run's process, later its exit code."""
import contextlib, gc, json, os, signal, subprocess, sys, threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


# --- the side of the tests

class Runs:
    "Runs of the command, one after the other."
    def __init__(self, folder, variables):
        self.folder, self.told = folder, folder / 'told'
        self.server = subprocess.Popen(
            [sys.executable, __file__], cwd=ROOT, text=True,
            env=os.environ | variables | dict(PYTHONPATH=str(ROOT)), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self.told.open('w'))

    def begin(self, *words, **how):  # -> psutil.Process
        import psutil
        asked = dict(words=list(map(str, words))) | {k: str(v) for k, v in how.items()}
        print(json.dumps(asked), file=self.server.stdin, flush=True)
        return psutil.Process(int(self.server.stdout.readline()))

    def code(self): return int(self.server.stdout.readline())

    def ask(self, *words, timeout=120) -> subprocess.CompletedProcess:
        "What the command prints, and how it ends."
        printed = [self.folder / name for name in ('out', 'err')]
        run = self.begin(*words, out=printed[0], err=printed[1])
        alarm = threading.Timer(timeout, run.kill)
        alarm.start()
        code = self.code()
        alarm.cancel()
        return subprocess.CompletedProcess(words, code, *(path.read_text() for path in printed))

    def to_the_end(self, *words, good=(0,), **how):
        self.begin(*words, **how)
        assert self.code() in good, self.told.read_text()[-1500:]

    def cut_power(self, run):
        "Kill a run and everything that it has begun."
        import psutil
        family = [run, *run.children(recursive=True)]
        for process in family: process.kill()
        assert self.code() == -signal.SIGKILL
        psutil.wait_procs(family)


@contextlib.contextmanager
def forked_runs(folder, variables=None):
    "A process for runs, with environment variables of its own."
    runs = Runs(folder, variables or {})
    yield runs
    runs.server.stdin.close()
    runs.server.wait()


# --- the side of the process

def counted(function, log):
    "A function of something with a path; each call is written down when it begins."
    def calls(path, **asked):
        with open(log, 'a') as file: file.write(f'{Path(path).stem}\n')
        return function(path, **asked)
    return calls


def become(words, log='', study='', out='', err='', **variables):
    "Be the command, with a group of processes of its own."
    from emotion_study import cli, features, predict
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    printed = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for path in (out, err) if path]
    for here, there in zip((1, 2), printed or (2, 2)): os.dup2(there, here)
    os.environ.update(variables)
    if study: cli.STUDY, cli.have_samples = Path(study), lambda: False
    if log:
        features._measured = counted(features._measured, log)
        predict.voice_rows = counted(predict.voice_rows, log)
    try: cli.main(words)
    except SystemExit as end:
        if not printed: raise
        for stream in (sys.stdout, sys.stderr): stream.flush()
        os._exit(end.code or 0)  # to take so many modules apart would last longer than the run


def main():
    import papermill  # noqa: F401
    from emotion_study import cli, figures, predict, site, training  # noqa: F401
    from emotion_study.features import compile_once
    compile_once()
    gc.freeze()  # nothing of this process is looked at again by a run, so it need not be copied
    for line in sys.stdin:
        if not (pid := os.fork()): become(**json.loads(line))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == '__main__': main()
