"""A table of changes that would make the study dishonest or its numbers wrong, and a run that sees which tests notice them.

`.venv/bin/python tests/mutants.py` tries all of them on a copy of the checkout, one after the
other: about half an hour. With words behind it only those whose name holds one of the words. It
prints one line a mutant, and ends with an error when fewer than nine in ten are killed or when one
survives that `SURVIVORS` does not explain.

`mutants.py sound` asks the same tests of the unchanged code: whoever fails there kills nothing."""
import json, os, shutil, subprocess, sys, tempfile, time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PYTEST = ['-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider', '-W', 'ignore', '-m', 'not study']


class Mutant(NamedTuple):
    name: str    # what is wrong with it
    module: str  # of the package
    old: str     # one place in that module
    new: str
    tests: tuple # what should notice it, the likeliest first: names of test files with `::` or words of -k, or `lesson`


MUTANTS = [
    # who may learn from whom
    Mutant('a speaker on both sides is no leak', 'protocols', "[('actor', pairs)] * (fold.protocol in SPEAKER_DISJOINT)",
           "[('actor', pairs)] * 0", ('test_mutants -k tested_speaker',)),
    Mutant('a recording on both sides is no leak', 'protocols', 'if not both.size: continue', 'continue', ('test_manifest -k copies', 'lesson')),
    Mutant('copies stay in training', 'protocols', 'val = apart(fold.val, fold.test)', 'return fold', ('test_manifest -k copies',)),
    Mutant('an empty set passes', 'protocols', '== 0:\n        raise LeakageError', '< 0:\n        raise LeakageError', ('test_mutants -k empty_set',)),
    Mutant('labels are not sealed', 'protocols', 'if not self._allowed.issuperset(rows.ravel().tolist()):', 'if False:', ('test_pipeline -k sealed',)),
    Mutant('random split without strata', 'protocols', 'stratify=y, random_state', 'stratify=None, random_state', ('test_mutants -k share',)),
    Mutant('validation without strata', 'protocols', 'stratify=y[fit], random_state', 'stratify=None, random_state', ('test_mutants -k share',)),
    Mutant('random split forgets its seed', 'protocols', 'stratify=y, random_state=seed', 'stratify=y, random_state=0', ('test_mutants -k split',)),
    Mutant('groups of speakers forget their seed', 'protocols', 'rng = np.random.default_rng(seed)\n    speakers', 'rng = np.random.default_rng(0)\n    speakers',
           ('test_mutants -k split',)),
    Mutant('a tenth is tested', 'protocols', 'test_size=share(0.2,', 'test_size=share(0.1,', ('test_mutants -k share',)),
    Mutant('groups are not even in sex', 'protocols', "groupby('sex', sort=True, dropna=False)", "groupby(lambda i: 0)", ('lesson', 'test_properties')),
    Mutant('validation is the tested group', 'protocols', 'test, val = of == i, of == (i + 1) % k', 'test, val = of == i, of == i', ('test_pipeline -k folds',)),
    Mutant('the sentence is not held back', 'protocols', 'keep(fold.test, other)', 'keep(fold.test, learnt)', ('test_mutants -k sentence',)),
    Mutant('scaling learns from test rows', 'protocols', 'if np.intersect1d(rows, fold.test).size:', 'if False:', ('test_pipeline -k scaler',)),
    # figures
    Mutant('recall is precision', 'metrics', 'uar=mean(diagonal, truth)', 'uar=mean(diagonal, answered)', ('test_properties', 'lesson')),
    Mutant('an absent class counts as wrong', 'metrics', 'present.sum(-1))\n    return dict', 'present.shape[-1])\n    return dict', ('test_properties', 'lesson')),
    Mutant('clips are the units of the error', 'metrics', '(len(left_out) - 1) / len(left_out)', '1 / len(left_out)', ('lesson', 'test_statistics')),
    Mutant('an interval for two speakers', 'metrics', 'FEWEST = 3', 'FEWEST = 2', ('test_silence -k few', 'lesson')),
    Mutant('a 90 % interval', 'metrics', 'special.stdtrit(actors - 1, .975)', 'special.stdtrit(actors - 1, .95)', ('lesson', 'test_statistics')),
    Mutant('a promise learns from its own speaker', 'metrics', 'learn(groups != name)', 'learn(groups == groups)', ('test_silence -k own',)),
    Mutant('risk counts what is not given', 'metrics', 'risk=wrong / n))', 'risk=wrong / n[-1]))', ('test_silence -k risk',)),
    # tests of significance
    Mutant('Holm is not applied', 'statistics', "method='holm')", "method='holm')\n    adjusted = np.where(computed, values, 1.)", ('test_statistics -k holm', 'lesson')),
    Mutant('what was not computed leaves the family', 'statistics', 'multipletests(np.where(computed, values, 1.), alpha', 'multipletests(np.where(computed, values, 0.), alpha',
           ('test_statistics', 'lesson')),
    Mutant('one-sided flips', 'statistics', 'float((above + below).sum() / 2 ** len(d))', 'float(above.sum() / 2 ** len(d))', ('test_statistics', 'lesson')),
    Mutant('the observed flip is not counted', 'statistics', '(reached + 1) / (draws + 1)', 'reached / (draws + 1)', ('test_statistics -k flips',)),
    Mutant('mid-p is the exact p', 'statistics', 'exact - float(point)', 'exact', ('test_statistics', 'lesson')),
    Mutant('variance of folds as if they were independent', 'statistics', '(1 / len(x) + ratio)', '(1 / len(x))', ('test_statistics', 'lesson')),
    Mutant('truth is shuffled over all groups', 'statistics', 'np.split(truth, np.flatnonzero(groups[1:] != groups[:-1]) + 1)', '[truth]', ('lesson', 'test_statistics')),
    # evidence
    Mutant('the audit tolerates a point', 'evidence', 'TOLERANCE = 1e-6', 'TOLERANCE = 1.', ('test_audit', 'lesson')),
    Mutant('a label that the code denies passes', 'evidence', "if (code['actor'], code['emotion']) != (r.actor, r.emotion):", 'if False:', ('test_audit', 'lesson')),
    Mutant('probabilities need not sum to one', 'evidence', '< 1e-3))\n        if bad', '< 1e3))\n        if bad', ('test_audit -k touched',)),
    Mutant('folds of another protocol pass', 'evidence', "if made != dict(zip(first['clip'], first['fold'])):", 'if False:', ('test_audit', 'lesson')),
    Mutant('an entry may be written twice', 'evidence', "faults += [f'{i}: is written twice'", "faults + [f'{i}: is written twice'", ('test_audit', 'lesson')),
    Mutant('a figure from outside may be derivable', 'evidence', "if e.get('outside'):\n            faults.append", "if False:\n            faults.append", ('test_audit', 'lesson')),
    # the pool and its experts
    Mutant('weights are learnt from experts fitted on what they judge', 'pool', '[ask_all(parts, clips, a, b) for a, b in cut]', '[ask_all(parts, clips, fold.fit, b) for a, b in cut]',
           ('test_mutants -k judged',)),
    Mutant('inner folds forget the seed', 'pool', 'shuffle=True, random_state=fold.seed', 'shuffle=True, random_state=0', ('test_mutants -k cut_of',)),
    Mutant('the constant is chosen on training rows', 'fusion', 'model.predict(X[fold.val]) == y[fold.val]', 'model.predict(X[fold.train]) == y[fold.train]',
           ('test_mutants -k constant',)),
    Mutant('an expert is fitted on test rows too', 'fusion', 'model.fit(X[fold.fit], y[fold.fit])', 'model.fit(X, y[np.arange(len(X))])', ('test_pipeline -k cannot', 'lesson')),
    Mutant('an absent channel has a say', 'fusion', "* present[:, :, None], axis=1)\n        voters", ", axis=1)\n        voters", ('test_training -k missing', 'lesson')),
    Mutant('a channel asks itself', 'fusion', "(np.arange(C)[:, None] != np.array(self.owner))", "(np.arange(C)[:, None] == np.array(self.owner))", ('lesson', 'test_training')),
    Mutant('the temperature changes nothing', 'fusion', 'logs / voters / self.temperature', 'logs / voters', ('test_mutants -k temperature',)),
    # training
    Mutant('the temperature is never set', 'training', "stack.temperature.assign(best_temperature(at_stop, truth).astype('float32'))", 'pass', ('test_mutants -k temperature',)),
    Mutant('the coldest temperature is taken', 'training', 'TEMPERATURES[loss.argmin(axis=0)]', 'TEMPERATURES[0 * loss.argmin(axis=0)]', ('test_mutants -k temperature',)),
    Mutant("members' seed ignored in run_stack", 'training', '[network_seed(*t) for t in padded], epochs', '[network_seed(f, 0) for f, _ in padded], epochs',
           ('test_mutants -k members',)),
    Mutant('members of one seed', 'training', '100 * fold.fold + member', '100 * fold.fold', ('test_mutants -k seed',)),
    Mutant('networks learn the labels of test rows', 'training', 'target[i, f.fit] = np.eye(classes)[sealed[i][f.fit]]', 'target[i] = np.eye(classes)[labels]',
           ('test_training -k labels',)),
    Mutant('saved code is run', 'training', 'safe_mode=True', 'safe_mode=False', ('test_mutants -k code',)),
    Mutant('weights are not compared with their card', 'training', "if card.get('weights', '') not in ('', file_digest(weights)):", 'if False:',
           ('test_faults -k changed_places',)),
    Mutant('a card of several trainings passes', 'training', 'if any(about(card) != about(cards[0][1]) for _, card in cards):', 'if False:', ('test_faults -k another_training',)),
    # sound
    Mutant('the left channel in place of the mean', 'media', 'if r.min() >= OPPOSED: return x.mean(axis=1), notes', 'if r.min() >= OPPOSED: return x[:, 0], notes',
           ('test_mutants -k channels',)),
    Mutant('silence is measured', 'media', "return '' if rest >= SILENCE else 'silent'", "return ''", ('test_pipeline -k reason', 'lesson')),
    Mutant('a number that is none is measured', 'media', "if bad: return f'not finite", "if False: return f'not finite", ('test_pipeline -k reason',)),
    Mutant('whole numbers are not rescaled', 'media', 'x / np.float32(full)', 'x / np.float32(1)', ('test_media -k mended', 'lesson')),
    Mutant('an offset stays', 'media', 'return y - np.float32(mean), [', 'return y, [', ('test_media -k mended', 'lesson')),
    Mutant('a cut sound says nothing', 'media', 'FEWER = .05', 'FEWER = 1e9', ('test_faults -k is_cut',)),
    Mutant('an error of the moment is kept', 'media', "return kind_of(reason) in ('unreadable', 'file missing', 'failed')", 'return False',
           ('test_faults -k moment',)),
    Mutant('pitch over 110 Hz', 'speech', 'f0[voiced] / 55.0', 'f0[voiced] / 110.0', ('test_mutants -k semitones',)),
    Mutant('pitch in natural logarithms', 'speech', '12 * np.log2(', '12 * np.log(', ('test_mutants -k semitones',)),
    # enrolment
    Mutant('a speaker is trusted at once', 'protocols', 'mean = prior.mean + trust * mean', 'mean = prior.mean + mean', ('test_enrolment', 'lesson')),
    Mutant('the spread of a new speaker ignores the doubt', 'protocols', 'np.sqrt(prior.within * ratio + (1 - trust) * prior.between)', 'np.sqrt(prior.within * ratio)',
           ('lesson', 'test_enrolment')),
    Mutant('one emotion counts as a voice', 'protocols', 'return float(max(0., 1 - expected / max(distance, 1e-12)))', 'return 0.', ('lesson', 'test_enrolment')),
    # what a pool is
    Mutant('a pool without weights', 'pool', "'m,nmk->nk', weights, _logs(parts)", "'m,nmk->nk', np.ones_like(weights), _logs(parts)", ('lesson', 'test_pool')),
    Mutant('weights may be negative', 'pool', 'bounds=[(0, None)] * M', 'bounds=[(None, None)] * M', ('lesson', 'test_pool')),
    Mutant('the pull is not felt', 'pool', 'pull * ((w - 1 / M) ** 2).sum(), slope + 2 * pull * (', '0 * ((w - 1 / M) ** 2).sum(), slope + 0 * (', ('lesson', 'test_pool')),
    Mutant('the pull is judged on what it learnt from', 'pool', 'pool_weights(parts[~out], y[~out], pull)', 'pool_weights(parts, y, pull)', ('lesson', 'test_pool')),
    Mutant('the worst pull is taken', 'pool', 'return min(PULLS, key=left_out)', 'return max(PULLS, key=left_out)', ('lesson', 'test_pool')),
    Mutant('the mean of all clips is taken off', 'pool', 'base = group & fitted if (group & fitted).any() else group', 'base = group', ('lesson', 'test_pool')),
    Mutant('one clip makes a mean', 'pool', 'ENOUGH = 8', 'ENOUGH = 1', ('lesson', 'test_pool')),
    Mutant('a speaker has no vector of their own', 'pool', 'np.where(same, K, K / 2)', 'np.where(same, K / 2, K / 2)', ('lesson', 'test_pool')),
    Mutant('covariances are not shrunk', 'pool', 'return (noise / far if noise > 0 else 0.), level', 'return 0., level', ('lesson', 'test_pool')),
    Mutant('the encoder outweighs the face', 'pool', 'ENCODER_SCALE = 2.0', 'ENCODER_SCALE = 20.0', ('lesson', 'test_pool')),
    Mutant('parts keep their lengths', 'pool', 'return X / np.sqrt((X[:, fit] ** 2).sum(axis=2).mean() or 1.0)', 'return X', ('lesson', 'test_pool')),
    Mutant('self-training for strangers', 'pool', 'if clips.groups is None or fold.protocol in SPEAKER_DISJOINT:', 'if clips.groups is None:', ('lesson', 'test_pool')),
    Mutant('a guess is its own witness', 'pool', 'f = Y[B] - np.linalg.solve(', 'f = Y[B] - 0 * np.linalg.solve(', ('lesson', 'test_pool')),
    # from corpus to corpus
    Mutant('a speaker teaches and is asked', 'pool', "for column in ('corpus', 'clip', 'speaker'):", "for column in ('corpus', 'clip'):", ('test_transfer', 'lesson')),
    Mutant('a recording teaches and is asked', 'pool', 'if X[i].tobytes() not in place_of: continue', 'continue', ('test_transfer', 'lesson')),
    Mutant('classes of one side are asked', 'pool', 'part = lambda rows: rows[np.isin(y[rows], classes)]', 'part = lambda rows: rows', ('test_transfer', 'lesson')),
    Mutant('one clip knows the set', 'pool', 'z_scores(asked, teaches, sides.weights)', 'z_scores(asked)', ('test_transfer', 'lesson')),
    Mutant('corpora are standardised together', 'pool', '(by_corpus(teaches, sides), z_scores(asked))', '(z_scores(teaches), z_scores(asked))', ('lesson', 'test_transfer')),
    Mutant('a large class weighs more', 'pool', 'return (len(y) / len(n) / n)[kinds]', 'return np.ones(len(y))', ('lesson', 'test_transfer')),
    Mutant('the worst recipe is taken', 'pool', 'recipes[int(uar_of.mean(axis=1).to_numpy().argmax())]', 'recipes[int(uar_of.mean(axis=1).to_numpy().argmin())]',
           ('lesson', 'test_transfer')),
    Mutant('a guess weighs as ten labels', 'pool', 'np.concatenate([sides.weights, np.ones(len(answer))])', 'np.concatenate([sides.weights, 10 * np.ones(len(answer))])',
           ('test_transfer', 'lesson')),
    Mutant('a speaker with one emotion is adapted to', 'pool', 'return f * known.speaker / (known.speaker + doubt)', 'return known.speaker / (known.speaker + doubt)',
           ('lesson', 'test_transfer')),
    Mutant('chance passes for a voice', 'pool', 'between.append((clips.mean(axis=0) ** 2).sum() - within / len(clips))', 'between.append((clips.mean(axis=0) ** 2).sum())',
           ('lesson', 'test_transfer')),
    # the network and the plain experts
    Mutant('attention reads an absent channel', 'fusion', 'mask = (self.others * visible[:, None])[:, None]', 'mask = self.others[None, None]', ('lesson', 'test_training -k missing')),
    Mutant('gates open for an absent channel', 'fusion', 'gates = ops.softmax(a + (here - 1) * 1e9, axis=1) * here', 'gates = ops.softmax(a, axis=1)', ('lesson', 'test_training -k missing')),
    Mutant('late fusion adds probabilities', 'fusion', '[np.log(np.clip(p, 1e-6, 1)) for p in parts]', '[np.clip(p, 1e-6, 1) for p in parts]', ('lesson', 'test_pipeline')),
    Mutant('the kernel knows the test rows', 'fusion', 'Z.shape[1] * Z[rows].var() or 1.0', 'Z.shape[1] * Z.var() or 1.0', ('test_pipeline -k cannot', 'lesson')),
    Mutant('the worst constant is taken', 'fusion', 'return C_GRID[kind][int(np.argmax(scores))]', 'return C_GRID[kind][int(np.argmin(scores))]', ('test_mutants -k constant', 'lesson')),
    Mutant('an unseen class moves the columns', 'fusion', 'p[:, model.classes_] = model.predict_proba', 'p[:, :len(model.classes_)] = model.predict_proba', ('lesson', 'test_pipeline')),
    Mutant('first weights hang on other threads', 'training', "with mock.patch.object(seed_generator, 'python_random', own_stream): return build()", 'return build()',
           ('test_training -k seed_alone',)),
    # what comes from outside
    Mutant('a server without a length fills the disk', 'fetch', 'if lacking < 0:', 'if False:', ('test_download -k no_length',)),
    Mutant('an encrypted address may send on to a plain one', 'fetch', "if response.is_redirect and response.url.startswith('https:') and target.startswith('http:'):", 'if False:',
           ('test_download -k encrypted',)),
    Mutant('a member may leave its folder', 'fetch', "or '..' in PurePosixPath(name).parts", '', ('test_download -k leaves',)),
    Mutant('a link in a zip is made', 'fetch', 'if outside or stat.S_ISLNK(m.external_attr >> 16):', 'if outside:', ('test_download -k links',)),
    Mutant('a download begins anew each time', 'fetch', 'r, start = ask(url, have if have < size else 0)', 'r, start = ask(url, 0)', ('test_download -k resumed',)),
    Mutant('a page of another length is taken', 'fetch', 'if length and start + int(length) != size:', 'if False:', ('test_download -k login', 'test_download')),
    Mutant('a checksum is not asked for', 'fetch', 'pooch.retrieve(url, archive.checksum,', 'pooch.retrieve(url, None,', ('test_download -k checksum',)),
    Mutant('a full disk is not foreseen', 'fetch', 'if free < need:', 'if False:', ('test_download -k no_room', 'lesson')),
    Mutant('a wrong CRC passes', 'fetch', 'return crc == member.CRC', 'return True', ('test_download -k unpacking',)),
]

SURVIVORS = {  # name of a mutant that nothing notices: why that may be
}


def shadow(folder: Path) -> Path:
    "A checkout of links, whose package and tests are copies."
    for path in ROOT.iterdir():
        if path.name in ('.git', 'emotion_study', 'tests', 'nbs'): continue
        (folder / path.name).symlink_to(path)
    for name in ('emotion_study', 'tests', 'nbs'):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__'))
    return folder


def lesson_of(module: str) -> str:  # a notebook
    "The chapter that exports a module."
    return next(p.name for p in (ROOT / 'nbs').glob(f'[0-9]*_{module}.ipynb'))


def command(test: str, module: str, house: Path) -> list:
    "How to ask one test, some tests of a file, or the lessons of a chapter."
    if test == 'lesson':
        return [str(Path(sys.executable).parent / 'nbdev_test'), '--path', str(house / 'nbs' / lesson_of(module)), '--n_workers', '0']
    file, *rest = test.split(' ', 2)
    return [sys.executable, *PYTEST, f'tests/{file}.py', *rest]


def asked(house: Path, line: list):  # exit code, seconds
    "Run one command in the shadow."
    began, env = time.monotonic(), os.environ | dict(PYTHONPATH=str(house), OMP_NUM_THREADS='1', PYTHONDONTWRITEBYTECODE='1')
    done = subprocess.run(line, cwd=house, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=900)
    return done.returncode, time.monotonic() - began


def changed(notebook: dict, mutant: Mutant) -> dict:
    "The same change in the chapter, whose lessons run its own cells."
    for cell in notebook['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'code' and '#| export' in source: cell['source'] = source.replace(mutant.old, mutant.new)
    return notebook


def verdict(house: Path, mutant: Mutant) -> tuple:  # by what it was killed ('' when it survived), seconds
    "Change one place, ask the tests, change it back."
    path, chapter = house / 'emotion_study' / f'{mutant.module}.py', house / 'nbs' / lesson_of(mutant.module)
    source, lessons, spent = path.read_text(encoding='utf-8'), chapter.read_text(encoding='utf-8'), 0.
    if source.count(mutant.old) != 1: raise SystemExit(f'{mutant.name}: its place is there {source.count(mutant.old)} times')
    path.write_text(source.replace(mutant.old, mutant.new), encoding='utf-8')
    chapter.write_text(json.dumps(changed(json.loads(lessons), mutant)), encoding='utf-8')
    try:
        for test in mutant.tests:
            code, seconds = asked(house, command(test, mutant.module, house))
            spent += seconds
            if code == 1: return test, spent
            if code: raise SystemExit(f'{mutant.name}: {test} ended with exit code {code}')
    finally:
        path.write_text(source, encoding='utf-8')
        chapter.write_text(lessons, encoding='utf-8')
    return '', spent


def sound(chosen: list) -> bool:  # did one fail?
    "Ask each test of the mutants of the code as it is."
    asked_of = sorted({(t, m.module * (t == 'lesson')) for m in chosen for t in m.tests})
    failed = 0
    with tempfile.TemporaryDirectory(prefix='mutants-') as tmp:
        house = shadow(Path(tmp))
        for test, module in asked_of:
            code, seconds = asked(house, command(test, module, house))
            failed += code != 0
            said = f'exit code {code}' if code else 'passes'
            print(f"{said}  ({seconds:.0f} s)  {' '.join(filter(None, (test, module)))}", flush=True)
    return failed > 0


def main(words):
    if words[:1] == ['sound']: return sound(MUTANTS)
    chosen = [m for m in MUTANTS if not words or any(w in m.name for w in words)]
    left = []
    with tempfile.TemporaryDirectory(prefix='mutants-') as tmp:
        house = shadow(Path(tmp))
        for mutant in chosen:
            by, seconds = verdict(house, mutant)
            if not by: left.append(mutant.name)
            print(f"{'killed by ' + by if by else 'SURVIVED'}  ({seconds:.0f} s)  {mutant.module}: {mutant.name}", flush=True)
    print(f'{len(chosen) - len(left)} of {len(chosen)} killed')
    return len(left) > len(chosen) / 10 or bool(set(left) - set(SURVIVORS))


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
