"Words where they carry emotion: what is read, what is judged, what is refused, and the study's page on an invented corpus."
import json

import numpy as np
import pandas as pd
import pytest

from emotion_study import text as words
from emotion_study.core import ROOT, SettingError
from emotion_study.evidence import Runs, check_results
from study_code import definitions

EMOTIONS = ('neutral', 'joy', 'sadness', 'anger', 'fear', 'disgust', 'surprise')
SAYINGS = ('We take the bus at {} tomorrow.', 'I love number {}, this is wonderful!', 'He died {} days ago and I miss him.',
           'Get out, {} times I told you!', 'Hide, there are {} men with a knife!', 'The soup of day {} is rotten, how gross.',
           'What? You won {} of them?')


def lines_of(dialogues, first=1):
    "Dialogues of seven lines in MELD's columns, one line of each emotion."
    rows = [(d, i, 'AB'[i % 2], SAYINGS[i].format(first + d), e)
            for d in range(dialogues) for i, e in enumerate(EMOTIONS)]
    return pd.DataFrame(rows, columns=['Dialogue_ID', 'Utterance_ID', 'Speaker', 'Utterance', 'Emotion'])


@pytest.fixture
def meld(tmp_path):
    folder = tmp_path / 'meld'
    folder.mkdir()
    for k, part in enumerate(words.MELD_PARTS):
        lines_of(6, 10 * k + 1).to_csv(folder / f'{part}_sent_emo.csv', index=False)
    return folder


# --- reading

def test_the_folder_is_named_or_found(meld, monkeypatch, tmp_path):
    monkeypatch.setenv('EMOTION_STUDY_MELD', str(meld))
    assert words.find_meld() == meld and words.find_meld(str(meld)) == meld
    with pytest.raises(SettingError, match="is no folder with MELD's texts: fetch train_sent_emo.csv"):
        words.find_meld(str(tmp_path / 'elsewhere'))
    monkeypatch.delenv('EMOTION_STUDY_MELD')
    monkeypatch.setattr(words, 'ROOT', tmp_path / 'nowhere' / 'at')
    assert words.find_meld() is None


def spoil(change):
    def do(folder):
        path = folder / 'dev_sent_emo.csv'
        change(pd.read_csv(path)).to_csv(path, index=False)
    return do


@pytest.mark.parametrize('harm, says', [
    (lambda folder: (folder / 'dev_sent_emo.csv').unlink(), 'dev_sent_emo.csv is missing: fetch'),
    (spoil(lambda t: t.drop(columns='Speaker')), 'column Speaker is missing'),
    (spoil(lambda t: t.replace('joy', 'boredom')), "unknown emotion 'boredom'"),
    (lambda folder: (folder / 'dev_sent_emo.csv').write_bytes(b'\xff\xfe\x00'), 'is not readable')])
def test_a_damaged_folder_is_told_in_one_line(meld, harm, says):
    harm(meld)
    with pytest.raises(SettingError, match=says) as told: words.read_meld(meld)
    assert '\n' not in str(told.value)


def test_lines_come_in_the_order_of_speaking(meld):
    path = meld / 'train_sent_emo.csv'
    before = words.read_part(path)
    pd.read_csv(path).sample(frac=1, random_state=0).to_csv(path, index=False, encoding='utf-8-sig')
    pd.testing.assert_frame_equal(words.read_part(path), before)
    assert before['emotion'].tolist()[:7] == ['neutral', 'happy', 'sad', 'angry', 'fearful', 'disgust', 'surprised']


def test_a_line_called_null_is_a_text(meld):
    path = meld / 'train_sent_emo.csv'
    pd.read_csv(path).assign(Utterance='None').to_csv(path, index=False)
    assert set(words.read_part(path)['text']) == {'None'}


# --- judging

def test_hate_moves_towards_angry_and_not_to_happy():
    p = pd.DataFrame(words.words_probabilities(['Get out of here, I hate you!', 'get out of here i hate you']), columns=words.CLASSES)
    assert (p.idxmax(axis=1) == 'angry').all() and (p['angry'] > 1 / 7).all() and (p['happy'] < 1 / 7).all()
    assert np.allclose(p.sum(axis=1), 1)


@pytest.mark.parametrize('text, why', [('', 'no words'), ('   ', 'no words'), ('...!?', 'no words'),
                                       ('What?!', 'only one word (what)'), ('door', 'only one word (door)')])
def test_too_few_words_give_no_answer_and_a_reason(text, why):
    assert words.no_answer(text).startswith(why) and np.isnan(words.words_probabilities([text])).all()


def test_an_answer_does_not_depend_on_its_neighbours():
    texts = ['I am so proud of you.', '', 'There is a man behind the door!', 'Yes.']
    together, alone = words.words_probabilities(texts), np.concatenate([words.words_probabilities([t]) for t in texts])
    assert np.allclose(together, alone, atol=1e-5, equal_nan=True) and words.words_probabilities([]).shape == (0, 7)


def test_the_shipped_head_is_small_and_says_its_licence():
    content = json.loads(words.HEAD.read_text(encoding='utf-8'))
    assert words.HEAD.stat().st_size < 60_000 and content['classes'] == [*words.CLASSES]
    assert 'GPL-3.0' in content['about']['licence'] and 'train part' in content['about']['data']


@pytest.mark.parametrize('harm', [lambda c: c | dict(bias=c['bias'][1:]), lambda c: c | dict(classes=['happy']),
                                  lambda c: {k: c[k] for k in ('bias', 'classes', 'about')}, lambda c: []])
def test_a_damaged_head_is_refused(tmp_path, harm):
    path = tmp_path / 'head.json'
    path.write_text(json.dumps(harm(json.loads(words.HEAD.read_text(encoding='utf-8')))), encoding='utf-8')
    with pytest.raises(SettingError, match='is no head for words'): words.load_head(path)
    path.write_text('{', encoding='utf-8')
    with pytest.raises(SettingError, match='is no head for words'): words.load_head(path)
    with pytest.raises(SettingError, match='is missing'): words.load_head(tmp_path / 'none.json')


# --- what the study does to texts

@pytest.mark.parametrize('rate', [0., .05, .2, .4, 1.])
def test_so_many_words_are_hit(rate):
    known = words.vocabulary([f'word{i}' for i in range(500)])
    said = [' '.join(f'said{i}' for i in range(50))] * 100
    heard = words.misheard(said, rate, known, lost=0.)
    hit = np.mean([not word.startswith('said') for text in heard for word in text.split()])
    assert abs(hit - rate) < .02 and words.misheard(said, rate, known, lost=0.) == heard


def test_no_word_is_replaced_by_itself_and_rates_are_checked():
    known = words.vocabulary(['yes no'])
    assert words.misheard(['Yes, no!'], 1., known, lost=0.) == ['no, yes!']
    with pytest.raises(SettingError, match='word error rate lies between'): words.misheard(['a'], 1.2, known)


def test_what_was_said_before_ends_with_the_dialogue(meld):
    from emotion_study.text import load_bert
    read_lines = definitions('12_words_that_mean_something').read_lines
    tokenizer, table = load_bert()[0], words.read_meld(meld)['train']
    told = [tokenizer.decode(ids) for ids, _ in read_lines(table, tokenizer)]
    starts = table['line'].to_numpy() == 0
    assert [text.count('[SEP]') for text in told] == [1 if first else 2 for first in starts]
    assert all(('same :' in text or 'other :' in text) != first for text, first in zip(told, starts))
    assert max(len(ids) for ids, _ in read_lines(table, tokenizer, own=4, before=5)) == 2 + 4 + 5 + 1


# --- the page

def run_page(tmp_path, **parameters):
    "The study's page without training; its report folder and what it printed."
    import nbformat, papermill
    from emotion_study.cli import kernel_env
    out, page = tmp_path / 'report', tmp_path / 'page.ipynb'
    with kernel_env(EMOTION_STUDY_CACHE=str(tmp_path / 'cache')):
        papermill.execute_notebook(str(ROOT / 'nbs/study/12_words_that_mean_something.ipynb'), str(page),
                                   dict(profile='quick', out=str(out)) | parameters, kernel_name='python3',
                                   language='python', cwd=str(ROOT), progress_bar=False)
    outputs = [o for c in nbformat.read(page, 4).cells if c.cell_type == 'code' for o in c.outputs]
    return out, ''.join(o.get('text', '') for o in outputs if o.output_type == 'stream' and o.name == 'stdout')


def test_the_page_judges_an_invented_corpus(meld, tmp_path):
    out, said = run_page(tmp_path, meld=str(meld))
    entries = json.loads((out / 'results.json').read_text())
    assert {'12_confusion.png', '12_misheard.png', '12_two_corpora.png'} <= {p.name for p in (out / 'figures').iterdir()}
    assert check_results(Runs(pd.DataFrame(columns=['protocol', 'classes', 'scope', 'model', 'modalities', 'folds'])), entries)[0] == []
    found = {e['id']: e for e in entries}['meld/frozen/for uar/uar']
    assert found['n'] == 42 and found['dialogues'] == 6 and found['value'] > 50 and 'quick profile' in said
    assert not any('wonderful' in json.dumps(e) for e in entries), 'no text of the corpus is in the results'


def test_without_meld_the_page_says_so_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(words, 'find_meld', lambda folder: None)
    monkeypatch.setenv('TF_ENABLE_ONEDNN_OPTS', '0')
    cells = json.loads((ROOT / 'nbs/study/12_words_that_mean_something.ipynb').read_text(encoding='utf-8'))['cells']
    names = {}
    for cell in cells:
        if cell['cell_type'] != 'code': continue
        exec(''.join(cell['source']), names)
        if 'parameters' in cell['metadata'].get('tags', []): names['out'] = str(tmp_path / 'report')
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if 'MELD' in line] == ['Nothing is computed here, as MELD is not on this machine: ' + words.MELD_REMEDY]
    assert not (tmp_path / 'report' / 'results.json').exists()
