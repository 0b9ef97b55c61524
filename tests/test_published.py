"Weights that others made: they compute what their makers' networks compute, nothing in a file is run, and what does not fit is refused by name."
import math, os, zipfile
import numpy as np, pytest, torch
from safetensors.torch import save_file
from specnb.models.encoder import QUIRKS, encoder
from specnb.models.published import load_published, read_weights
from specnb.spectra.container import Spectra
from specnb.spectra.grid import Grid

GRID = Grid.linear(4000, 2, 67)  # tokens of 6 pixels every 3 leave one pixel over
LRS = dict(grid=GRID.id, patch=6, stride=3, width=16, depth=2, heads=2, max_tokens=30)
XP = dict(grid=GRID.id, wavelength=None, width=16, depth=2, heads=2, max_tokens=80)
AE = dict(grid=GRID.id, wavelength=None, hidden=12, blocks=2, factor=3, bottleneck=16)
SIZES = {'specclip-lrs': LRS, 'specclip-xp': XP, 'specclip-xp-ae': AE}
X = 1 + .1*torch.randn(5, GRID.n, generator=torch.Generator().manual_seed(1))


# what they publish, in their names

def fill(shapes, seed=0):
    "Random weights and biases of layers {name: (out, in) or (n,)}"
    rng = torch.Generator().manual_seed(seed)
    def draw(*shape): return .6*torch.randn(shape, generator=rng)
    res = {}
    for k, shape in shapes.items():
        res[f'{k}.weight'] = draw(*shape)
        if k != 'position_embed': res[f'{k}.bias'] = draw(shape[0])
    return res


def transformer(k=7, positions=30, width=16, depth=2, seed=0):
    "State dict of a masked transformer whose tokens hold k numbers"
    shapes = {'data_embed': (width, k), 'position_embed': (positions, width), 'final_layernorm': (width,), 'head': (k, width)}
    for i in range(depth):
        b = f'blocks.{i}'
        shapes |= {f'{b}.attention.q_proj': (width, width), f'{b}.attention.kv_proj': (2*width, width), f'{b}.attention.out_proj': (width, width),
                   f'{b}.ln1': (width,), f'{b}.ln2': (width,), f'{b}.mlp.0': (4*width, width), f'{b}.mlp.2': (width, 4*width)}
    return fill(shapes, seed)


def autoencoder(n=69, hidden=12, bottleneck=16, blocks=2):
    "State dict of an autoencoder of n numbers"
    shapes = {'input_proj': (hidden, n), 'bottleneck_down': (bottleneck, hidden), 'bottleneck_norm': (bottleneck,), 'bottleneck_up': (hidden, bottleneck), 'output_proj': (n, hidden)}
    for b in (f'{side}_blocks.{i}' for side in ('encoder', 'decoder') for i in range(blocks)):
        shapes |= {f'{b}.norm': (hidden,), f'{b}.mlp.0': (3*hidden, hidden), f'{b}.mlp.3': (hidden, 3*hidden)}
    return fill(shapes)


STATES = {'specclip-lrs': lambda: transformer(), 'specclip-xp': lambda: transformer(3, 80), 'specclip-xp-ae': autoencoder}
EACH = pytest.mark.parametrize('name', list(QUIRKS))


# what they compute, in plain operations

def dense(w, k, x): return x@w[f'{k}.weight'].T + w[f'{k}.bias']
def norm(w, k, x): return (x - x.mean(-1, keepdim=True))/(x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()*w[f'{k}.weight'] + w[f'{k}.bias']
def gelu(x): return .5*x*(1 + torch.erf(x/math.sqrt(2)))


def tokens(x, name):
    "Tokens: pieces of the standardised flux, after a first one with log10 of the standard deviation (LRS), or with mean and standard deviation (XP)"
    mean, std = x.mean(1), x.std(1)
    z = (x - mean[:, None])/std[:, None]
    length, stride, stats = (6, 3, [std.log10()]) if name == 'specclip-lrs' else (1, 1, [mean, std])
    pieces = [z[:, a:a + length] for a in range(0, x.shape[1], stride) if a + length <= x.shape[1]]
    v = torch.zeros(len(x), 1 + len(pieces), len(stats) + length)
    for i, s in enumerate(stats): v[:, 0, i] = s
    for j, p in enumerate(pieces): v[:, 1 + j, len(stats):] = p
    return v


def attend(q, k, v, heads, powers):
    "Attention, the queries divided `powers` times by the root of the width of a head"
    res = torch.empty_like(q)
    d = q.shape[-1]//heads
    for h in range(heads):
        s = slice(h*d, (h + 1)*d)
        res[..., s] = (q[..., s]@k[..., s].transpose(1, 2)/math.sqrt(d)**powers).softmax(-1)@v[..., s]
    return res


def run_transformer(w, x, name, heads=2, powers=2):
    "(mean of the tokens, what the head says of each)"
    v = tokens(x, name)
    h = dense(w, 'data_embed', v) + w['position_embed.weight'][:v.shape[1]]
    for b in (f'blocks.{i}' for i in range(2)):
        y = norm(w, f'{b}.ln1', h)
        k, u = dense(w, f'{b}.attention.kv_proj', y).chunk(2, -1)
        h = h + dense(w, f'{b}.attention.out_proj', attend(dense(w, f'{b}.attention.q_proj', y), k, u, heads, powers))
        h = h + dense(w, f'{b}.mlp.2', gelu(dense(w, f'{b}.mlp.0', norm(w, f'{b}.ln2', h))))
    h = norm(w, 'final_layernorm', h)
    return h.mean(1), dense(w, 'head', h)


def run_autoencoder(w, x):
    "(bottleneck, what comes out)"
    def chain(side, h):
        for b in (f'{side}_blocks.{i}' for i in range(2)): h = dense(w, f'{b}.mlp.3', gelu(dense(w, f'{b}.mlp.0', norm(w, f'{b}.norm', h))))
        return h
    mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    z = norm(w, 'bottleneck_norm', dense(w, 'bottleneck_down', chain('encoder', dense(w, 'input_proj', torch.cat([mean, std, (x - mean)/std], 1)))))
    return z, dense(w, 'output_proj', chain('decoder', dense(w, 'bottleneck_up', z)))


def reference(w, x, name, **kwargs): return run_autoencoder(w, x) if name == 'specclip-xp-ae' else run_transformer(w, x, name, **kwargs)


def put(path, state, **more):
    torch.save(dict(state_dict=state, **more), path)
    return path


def load(path, name, **kwargs): return load_published(path, name, **SIZES[name] | kwargs)


def apart(a, b): return np.abs(a.detach().numpy() - b.detach().numpy()).max()


@pytest.fixture
def lrs(tmp_path): return put(tmp_path/'lrs.ckpt', transformer(), epoch=3, hyper_parameters=dict(num_heads=2, slice_section_length=6, slice_overlap=3))


# they compute the same

@EACH
def test_same_numbers(name, tmp_path):
    w = STATES[name]()
    net = load(put(tmp_path/'w.ckpt', w), name)
    embedding, out = reference(w, X, name)
    assert apart(net.embed(X), embedding) < 1e-5 and not net.training
    if name == 'specclip-xp-ae': assert apart(net(X), out) < 1e-4
    else: assert apart(net.reconstruct(X), out[:, 1:, len(net.stats):]) < 1e-4


@EACH
def test_other_numbers_without_quirks(name, tmp_path):
    w = STATES[name]()
    net = load(put(tmp_path/'w.ckpt', w), name, quirks=False)
    assert apart(net.embed(X), reference(w, X, name)[0]) > .01 and net.card['loaded_from']['quirks'] == {}
    assert net.normalise == encoder(name, **SIZES[name]).normalise


@pytest.mark.parametrize('name', ['specclip-lrs', 'specclip-xp'])
@pytest.mark.parametrize('double', [True, False])
def test_scaled_twice(name, double, tmp_path):
    "What double_scale switches is how often queries are divided, and nothing else"
    w = STATES[name]()
    net = load(put(tmp_path/'w.ckpt', w), name, double_scale=double)
    once, twice = (reference(w, X, name, powers=p)[0] for p in (1, 2))
    assert apart(net.embed(X), twice if double else once) < 1e-5 and apart(once, twice) > .01


def test_one_layer_for_queries_keys_and_values(tmp_path):
    "Where PyTorch is old, their code makes them in one layer and divides once"
    w = transformer()
    fused = {k: v for k, v in w.items() if '_proj' not in k or 'out' in k}
    for i in range(2):
        for p in ('weight', 'bias'): fused[f'blocks.{i}.attention.attention.{p}'] = torch.cat([w[f'blocks.{i}.attention.{a}_proj.{p}'] for a in ('q', 'kv')])
    net = load(put(tmp_path/'w.ckpt', fused), 'specclip-lrs')
    assert apart(net.embed(X), run_transformer(w, X, 'specclip-lrs', powers=1)[0]) < 1e-5 and net.card['loaded_from']['quirks']['double_scale'] is False
    assert apart(load(tmp_path/'w.ckpt', 'specclip-lrs', double_scale=True).embed(X), run_transformer(w, X, 'specclip-lrs')[0]) < 1e-5


def test_files(tmp_path):
    "safetensors, half precision, a bare state dict"
    w = transformer()
    save_file(w, tmp_path/'w.safetensors')
    torch.save(w, tmp_path/'w.pt')
    for file in ('w.safetensors', 'w.pt'): assert apart(load(tmp_path/file, 'specclip-lrs').embed(X), run_transformer(w, X, 'specclip-lrs')[0]) < 1e-5
    net = load(put(tmp_path/'h.ckpt', {k: v.half() for k, v in w.items()}), 'specclip-lrs')
    assert {p.dtype for p in net.parameters()} == {torch.float32} and apart(net.embed(X), run_transformer(w, X, 'specclip-lrs')[0]) < .05


def test_prefixes(tmp_path, lrs):
    w, want = transformer(), load(lrs, 'specclip-lrs').embed(X)
    net = load(put(tmp_path/'m.ckpt', {f'module.model.{k}': v for k, v in w.items()} | {'criterion.scale': torch.ones(1), 'module.val_loss.n': torch.ones(1, dtype=int)}), 'specclip-lrs')
    assert apart(net.embed(X), want) == 0 and net.card['loaded_from']['prefix'] == 'module.model.' and net.card['loaded_from']['left_out'] == 2
    both = put(tmp_path/'both.ckpt', {f'a.backbone.{k}': v for k, v in w.items()} | {f'b.backbone.{k}': v for k, v in transformer(seed=9).items()} | {'a.mlp.weight': torch.ones(1)})
    with pytest.raises(ValueError, match="add prefix='a.backbone.' or prefix='b.backbone.'"): load(both, 'specclip-lrs')
    assert apart(load(both, 'specclip-lrs', prefix='a.backbone.').embed(X), want) == 0
    with pytest.raises(ValueError, match='missing: 31'): load(both, 'specclip-lrs', prefix='c.')


def test_more_names(tmp_path, lrs):
    "Another layout, with keys and values apart, is a matter of a few more names"
    w = transformer()
    for i in range(2):
        for p in ('weight', 'bias'):
            k, v = w.pop(f'blocks.{i}.attention.kv_proj.{p}').chunk(2)
            w |= {f'blocks.{i}.attention.v.{p}': v, f'blocks.{i}.attention.k.{p}': k}
    names = {f'blocks.{{i}}.attention.{a}': 'blocks.{i}.attention.qkv' for a in 'kv'}
    assert apart(load(put(tmp_path/'w.ckpt', w), 'specclip-lrs', names=names).embed(X), load(lrs, 'specclip-lrs').embed(X)) == 0


@EACH
def test_card_travels(name, tmp_path):
    path = put(tmp_path/'w.ckpt', STATES[name]())
    net = load(path, name, card=dict(note='mine'))
    net.save_pretrained(tmp_path/'ours')
    again = type(net).from_pretrained(tmp_path/'ours')
    assert apart(again.embed(X), net.embed(X)) == 0 and again.card == net.card and again.normalise == net.normalise
    source = net.card['loaded_from']
    assert net.card['note'] == 'mine' and source['file'] == 'w.ckpt' and len(source['sha256']) == 64 and source['preset'] == name and QUIRKS[name].items() <= source['quirks'].items()


def test_spectra_as_they_had_them(tmp_path, lrs):
    "LRS spectra over another continuum are refused; XP spectra are divided by one sample"
    net, ivar = load(lrs, 'specclip-lrs'), np.full(X.shape, 1e4)
    assert np.abs(net.encode(Spectra(X.numpy(), ivar, GRID, rest=True, normalised='specclip')) - run_transformer(transformer(), X, 'specclip-lrs')[0].numpy()).max() < 1e-5
    for normalised in ('', 'running'):
        with pytest.raises(ValueError, match='specclip'): net.encode(Spectra(X.numpy(), ivar, GRID, rest=True, normalised=normalised))
    grid = Grid.linear(5400, 20, 67)
    w, size = autoencoder(), AE | dict(grid=grid.id)
    z = load_published(put(tmp_path/'w.ckpt', w), 'specclip-xp-ae', **size).encode(Spectra(7*X.numpy(), ivar, grid, rest=True))
    assert np.abs(z - run_autoencoder(w, X/X[:, 5:6])[0].numpy()).max() < 1e-4


# nothing is run

class Trap:
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return os.mkdir, (self.path,)


class Mine: pass


@pytest.mark.parametrize('where', ['state_dict', 'hyper_parameters', 'callbacks'])
@pytest.mark.parametrize('protocol, says', [(2, 'more than tensors.*mkdir'), (4, 'cannot be read as tensors')])
def test_nothing_runs(where, protocol, says, tmp_path):
    torch.save({'state_dict': transformer()} | {where: {'a': Trap(tmp_path/'sprung')}}, tmp_path/'w.ckpt', pickle_protocol=protocol)
    with pytest.raises(ValueError, match=f'w.ckpt.*{says}.*safetensors'): load(tmp_path/'w.ckpt', 'specclip-lrs')
    assert not (tmp_path/'sprung').exists()


@pytest.mark.parametrize('held, asks', [(Mine(), 'Mine'), (torch.nn.Linear(2, 2), 'Linear'), (np.float64(1), 'scalar'), (np.ones(2), '_reconstruct')])
def test_globals_are_refused(held, asks, tmp_path):
    with pytest.raises(ValueError, match=asks): load(put(tmp_path/'w.ckpt', transformer(), extra=held), 'specclip-lrs')


def test_nothing_is_added_to_what_is_allowed(lrs):
    before = torch.serialization.get_safe_globals()
    load(lrs, 'specclip-lrs')
    assert torch.serialization.get_safe_globals() == before


@pytest.mark.parametrize('trap', [False, True])
def test_old_pickles(trap, tmp_path):
    torch.save(dict(state_dict=Trap(tmp_path/'sprung') if trap else transformer()), tmp_path/'w.ckpt', _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match='w.ckpt.*old kind.*safetensors'): load(tmp_path/'w.ckpt', 'specclip-lrs')
    assert not (tmp_path/'sprung').exists()


@pytest.mark.parametrize('keep', [0, 3, 300, -400, -1])
def test_cut_short(keep, tmp_path, lrs):
    for file, data in (('w.ckpt', lrs.read_bytes()), ('w.safetensors', None)):
        if data is None: save_file(transformer(), tmp_path/file); data = (tmp_path/file).read_bytes()
        (tmp_path/file).write_bytes(data[:keep])
        with pytest.raises(ValueError, match=f'{file}.*cut short'): load(tmp_path/file, 'specclip-lrs')


def test_no_checkpoints(tmp_path):
    (tmp_path/'a.ckpt').write_text('hello')
    with pytest.raises(ValueError, match='neither a checkpoint'): read_weights(tmp_path/'a.ckpt')
    with zipfile.ZipFile(tmp_path/'b.ckpt', 'w') as z: z.writestr('b/readme', 'hello')
    with pytest.raises(ValueError, match='is no checkpoint'): read_weights(tmp_path/'b.ckpt')
    for held, match in (([torch.ones(2)], 'no state dict'), ({}, 'no state dict'), (dict(a=torch.ones(2), epoch=3), r'no tensors are 1 \(epoch\)'), ({3: torch.ones(2)}, 'no tensors'), (dict(state_dict=None), 'no state dict')):
        torch.save(held, tmp_path/'c.ckpt')
        with pytest.raises(ValueError, match=match): read_weights(tmp_path/'c.ckpt')
    with pytest.raises(FileNotFoundError): read_weights(tmp_path/'none.ckpt')


# what does not fit

@pytest.mark.parametrize('change, match', [
    (lambda w: {k: v for k, v in w.items() if 'ln2' not in k}, r"does not fit 'specclip-lrs': missing: 4 \(blocks.0.ln2.weight, .*\)$"),
    (lambda w: {k: v for k, v in w.items() if 'kv_proj' not in k}, r'of another shape: 4 \(blocks.0.attention.q_proj.weight \(16, 16\), expected \(48, 16\)'),
    (lambda w: w | {'pool.weight': torch.ones(3)}, r'left over: 1 \(pool.weight\)$'),
    (lambda w: w | {'blocks.0.mlp.7.weight': torch.ones(3)}, r'left over: 1 \(blocks.0.mlp.7.weight\)$'),
    (lambda w: transformer(depth=3), r'left over: 14 \(blocks.2'),
    (lambda w: transformer(depth=1), r'missing: 12 \(blocks.1'),
    (lambda w: transformer(width=8), r'data_embed.weight \(8, 7\), expected \(16, 7\)'),
    (lambda w: w | {'head.weight': torch.tensor(1.)}, r'head.weight \?, expected \(7, 16\)'),
    (lambda w: w | {'head.bias': w['head.bias']/0}, r'not finite numbers are 1 \(head.bias\)'),
    (lambda w: w | {'head.bias': torch.ones(7, dtype=torch.int8)}, r'not finite numbers are 1 \(head.bias\)'),
    (lambda w: autoencoder(), r'missing: 31 .*; left over: 34 \(input_proj.weight'),
])
def test_what_does_not_fit(change, match, tmp_path):
    with pytest.raises(ValueError, match=match): load(put(tmp_path/'w.ckpt', change(transformer())), 'specclip-lrs')


def test_wrong_preset(tmp_path, lrs):
    with pytest.raises(ValueError, match="does not fit 'specclip-xp-ae': missing"): load(lrs, 'specclip-xp-ae')
    with pytest.raises(ValueError, match=r"does not fit 'specclip-xp': of another shape: .*data_embed.weight \(16, 7\), expected \(16, 3\)"): load(lrs, 'specclip-xp')
    with pytest.raises(ValueError, match="'small-lrs' has no published weights: choose from specclip-lrs"): load_published(lrs, 'small-lrs')


def test_what_shapes_do_not_tell(tmp_path, lrs):
    with pytest.raises(ValueError, match='made with heads=2; add'): load(lrs, 'specclip-lrs', heads=4)
    with pytest.raises(ValueError, match='made with stride=3; add'): load(lrs, 'specclip-lrs', stride=4)
    load(put(tmp_path/'w.ckpt', transformer(3, 80), hyper_parameters=dict(num_heads=2, slice_overlap=10)), 'specclip-xp')
