"Inputs beside the spectrum: encoders before and after alignment, the same strategies on the same stars, one table."
import json, shutil
import numpy as np, pytest
from astropy.table import Table
from specnb.apps import inputs, showdown as room
from specnb.apps.command import shown
from specnb.apps.hub import load_aligned, load_model
from specnb.apps.inputs import align_here, by_input, encoder_of, on_encoder
from specnb.apps.showdown import main, showdown
from specnb.learn.pairs import pair
from specnb.models.align import aligned
from specnb.models.embedded import Embedded
from specnb.models.encoder import encoder
from specnb.physics.survey import simulate
from specnb.spectra.container import Spectra
from specnb.spectra.gaia import XP_GRID, XP_LSF

TINY = dict(source=200, epochs=1, target=160, table=60, sizes=(30,), seeds=1, steps=5, inputs=('lrs', 'embed-split', 'embed-align'), pairs=None, align=1)


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "A folder with an aligned model of two small encoders"
    folder = tmp_path_factory.mktemp('aligned')/'both'
    both = dict(lrs=encoder('small-lrs', width=16, depth=1, heads=2, summary=0), xp=encoder('small-xp-ae', hidden=16, blocks=1, bottleneck=16, basis=0))
    model = aligned('clip-split', both)
    model.set_card(pairs=dict(train=1234))
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def shipped(small, monkeypatch):
    "That model in place of the one that ships"
    monkeypatch.setattr(inputs, 'load_aligned', lambda name='lrs-xp': load_aligned(small if name == 'lrs-xp' else name))


def pairs(n=80):
    lrs = simulate('lamost', n, seed=3)
    flux = np.random.default_rng(0).uniform(.5, 2, (n, XP_GRID.n))
    return pair(lrs=lrs, xp=Spectra(flux, np.full_like(flux, 1e3), XP_GRID, lrs.table[['target_id']], survey='gaiaxp', lsf=XP_LSF, rest=True))


def none(*args): raise ImportError('real XP spectra come with specnb[xp]')


def none_known(target): raise ValueError('not in this test')


def canned(*args, folder=None, **options):
    "In place of the curves, which look at the spectrum alone"
    return Table([dict(strategy=k, label=l, subset='full', n=9, r2=.9 - 1e-3*n, sigma=.1, bias=0., stars=n, seed=0) for k, n in (('zero-shot', 0), ('lora', 30), ('auto', 30)) for l in ('fe_h', 'alpha_fe')])


def test_inputs_in_one_table(tmp_path, monkeypatch, shipped):
    "The spectrum fares as without them; what cannot be made is named with its reason; what is there is not made again"
    monkeypatch.setattr(inputs, 'xp_lrs', none)
    monkeypatch.setattr(room, 'efficiency', canned)
    monkeypatch.setattr(room, '_figures', lambda *a: None)
    monkeypatch.setattr(room, 'others', lambda *a: ({}, {}))
    monkeypatch.setattr(room, 'limits', none_known)
    t = showdown(tmp_path/'all', TINY)['table1']
    for k in ('source', 'networks'): shutil.copytree(tmp_path/'all'/k, tmp_path/'lrs'/k)
    alone = showdown(tmp_path/'lrs', TINY | dict(inputs=('lrs',)))['table1']
    assert set(t['input']) == {'lrs', 'embed-split'} and set(alone['input']) == {'lrs'}
    mine = t[t['input'] == 'lrs']
    assert np.array_equal(mine['sigma'], alone['sigma']) and list(mine['strategy']) == list(alone['strategy'])
    other = t[t['input'] == 'embed-split']
    assert set(other['strategy']) == {'zero-shot', *room.RECIPES, 'auto'} and np.isfinite(other['sigma'][other['subset'] == 'full']).all()
    assert set(other['n'][other['subset'] == 'full']) == set(mine['n'][mine['subset'] == 'full'])
    net = load_model(tmp_path/'all'/'inputs'/'embed-split'/'networks'/'lora')
    assert type(net) is Embedded and net.card['transfer']['strategy'] == 'lora'
    report, plain = ((tmp_path/k/'report.md').read_text() for k in ('all', 'lrs'))
    assert 'it has seen labels that `lrs` has not' in report and 'aligned on 1,234 stars' in report and 'Each cell: full' in report
    assert '- without the input embed-align: real XP spectra come with' in report and '| strategy | lrs | embed-split |' in report
    assert 'input' not in plain and '| strategy | full | metal-poor | metal-rich |' in plain
    assert json.loads((tmp_path/'all'/'run.json').read_text())['setting']['inputs'] == list(TINY['inputs'])
    made = {p: p.stat().st_mtime_ns for p in (tmp_path/'all').rglob('*.safetensors')}
    again = showdown(tmp_path/'all', TINY)['table1']
    assert np.array_equal(again['sigma'], t['sigma']) and made == {p: p.stat().st_mtime_ns for p in (tmp_path/'all').rglob('*.safetensors')}
    with pytest.raises(ValueError, match='holds another run'): showdown(tmp_path/'all', TINY | dict(inputs=('lrs', 'embed')))


def test_aligned_for_a_run(tmp_path, monkeypatch, shipped):
    "On the spot, kept and read again, from the encoders that ship; or the one that is named"
    monkeypatch.setattr(inputs, 'xp_lrs', lambda n, seed: pairs())
    start = inputs.load_aligned()
    side, what = encoder_of('embed-align', tmp_path/'run', epochs=1)
    assert side.private_dim == 0 and 'made for this run' in what and 'labels that `lrs` has not' in what
    before, after = (s.encoder.state_dict() for s in (start.sides['lrs'], side))
    assert all(np.array_equal(before[k].numpy(), after[k].numpy()) for k in before)
    assert [p.name for p in (tmp_path/'run').iterdir()] == ['aligned']
    monkeypatch.setattr(inputs, 'xp_lrs', none)
    again = align_here(tmp_path/'run'/'aligned', start)
    assert np.array_equal(again.sides['lrs'].head.inner.weight.detach().numpy(), side.head.inner.weight.detach().numpy())
    named, what = encoder_of('embed-align', None, tmp_path/'run'/'aligned')
    assert named.n_features == side.n_features and 'run/aligned' in what


def test_the_three_encoders(small, shipped):
    "Before alignment no numbers of the head, after it those of the side"
    both = load_aligned(small)
    stars = simulate('lamost', 60, seed=2).normalise()
    for name, wanted in (('embed', both.sides['lrs'].encoder), ('embed-split', both.sides['lrs'])):
        net = on_encoder(encoder_of(name, None)[0], stars, ('fe_h',), hidden=[8])
        np.testing.assert_array_equal(net.encoder.encode(stars), wanted.encode(stars))
        z = net.project(net.prepare(stars)).detach().numpy()
        assert not net.encoder.training and np.abs(z.mean(0)).max() < .05 and net.mean[0] == pytest.approx(stars.table['fe_h'].mean(), abs=1e-5)


def test_by_input_of_few_labels():
    t = Table(rows=[('lrs', 'full', 'full', .9), ('embed', 'full', 'full', np.nan), ('embed', 'full', 'metal-rich', .4)], names=('input', 'strategy', 'subset', 'sigma'))
    assert list(by_input(t, 'sigma', '.1f')[0].values()) == ['full', '0.9 – –', '– – 0.4']


@pytest.mark.parametrize('args, status, words', [
    (['--inputs', 'lrs,magic'], 2, "no input 'magic'"),
    (['--inputs', 'lrs,embed', '--model', 'lrs-sim'], 2, 'which --model has not'),
    (['--quick', '--align', 'x'], 2, 'name it with --inputs'),
    (['--align', 'no-such'], 1, 'no aligned model'),
    (['--align', 'lrs-sim'], 1, 'holds no two aligned encoders')])
def test_what_is_wrong_is_said_first(tmp_path, monkeypatch, args, status, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(room, '_pretrained', lambda *a: pytest.fail('a network was trained'))
    got, _, err = shown(main, args)
    assert got == status and words in err, err
    assert not list(tmp_path.iterdir())
