"""Quick studies from end to end, which run beside other tests on the core that those leave idle."""
import os, re, shutil, subprocess, sys, threading
from pathlib import Path

from emotion_study import cli
from emotion_study.core import ROOT
from emotion_study.corpus import find_ravdess
from emotion_study.features import compile_once

CODE = 'import sys; from emotion_study.cli import main; main()'
EVERY = [*(f'{i:02d}' for i in range(9)), '13', '17', '98', '99']  # every notebook that is not optional
RUN = {'sound': EVERY, 'faces': EVERY}  # of four actors: each notebook without faces, and with them
FEWER = {'twin': ('01', '02', '05', '13', '17', '98', '99'),  # where real clips go through every notebook
         'ravdess': ('01', '02', '98', '99')}  # all 1,440 clips, where those of four actors go through the rest
LONGEST_FIRST = ('faces', 'sound', 'ravdess', 'twin')


def part_of_ravdess(folder, faces):
    "Four actors of the real corpus, by links."
    root, real = folder / 'ravdess', find_ravdess()
    for sound in sorted(real.rglob('*')):
        if re.match(r'03-01-.*-0[1-4]\.(wav|flac)$', sound.name):
            there = root / sound.parent.relative_to(real) / sound.name
            there.parent.mkdir(parents=True, exist_ok=True)
            there.symlink_to(sound)
    for tables in ('face_scores', 'openface') if faces else (): (root / tables).symlink_to(real / tables)
    return folder


def command_of(name, folder):  # arguments, variables
    "How a study is begun; all but the twin's do their work in one process, as two studies fill two cores."
    corpus, more, env = name, ['--seeds', '1'], dict(LOKY_MAX_CPU_COUNT='1')
    if name == 'twin': more, env = [], {}  # as many seeds as the profile says
    if name in FEWER and find_ravdess(): more += [f'--only={n}' for n in FEWER[name]]
    if name in RUN:
        corpus = 'ravdess'
        env['EMOTION_STUDY_DATA'] = str(part_of_ravdess(folder / 'data', faces=name == 'faces'))
    return ['study', '--corpus', corpus, '--profile', 'quick', '--out', str(folder / 'report'), *more], env


class Lanes:
    "Studies one after the other; a second lane opens when a test has to wait."
    def __init__(self, names, folder):
        self.folder, self.running, self.stopped = Path(folder), {}, False
        self.waiting, self.commands = [n for n in LONGEST_FIRST if n in names], {}
        for name in names:  # now, as later a test may have changed the environment of this process
            (self.folder / name).mkdir()
            asked, env = command_of(name, self.folder / name)
            self.commands[name] = asked, os.environ | env
        self.done, self.codes, self.lock = {n: threading.Event() for n in names}, {}, threading.Lock()
        if names: compile_once(); cli.have_samples()  # here, so that two don't write the same files at once
        self.lanes = 0
        self.open()

    def open(self):
        if self.lanes < 2: threading.Thread(target=self._lane, daemon=True).start()
        self.lanes += 1

    def _next(self):
        with self.lock:
            if self.stopped or not self.waiting: return None
            name = self.waiting.pop(0)
            self.running[name] = self._begin(name)
            return name

    def _begin(self, name):
        asked, env = self.commands[name]
        polite = ['nice', '-n', '5'] if shutil.which('nice') else []
        return subprocess.Popen([*polite, sys.executable, '-c', CODE, *asked], cwd=ROOT, env=env, stdin=subprocess.DEVNULL,
                                stdout=(self.folder / name / 'log').open('w'), stderr=subprocess.STDOUT)

    def _lane(self):
        while name := self._next():
            self.codes[name] = self.running[name].wait()
            self.done[name].set()

    def report(self, name, patience=1800):  # folder, what was printed
        "The report of a study that has ended well."
        if not self.done[name].is_set(): self.open()
        assert self.done[name].wait(patience), f'the study {name} takes too long'
        said = (self.folder / name / 'log').read_text()
        assert self.codes[name] == 0, said[-3000:]
        return self.folder / name / 'report', said

    def stop(self):
        self.stopped = True
        for process in self.running.values():
            if process.poll() is None: process.kill(); process.wait()
