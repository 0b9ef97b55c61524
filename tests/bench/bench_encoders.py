"Pre-training steps and embeddings of every preset, beside the time that the matrix products of a step take alone; aligning 20,000 pairs. On a GPU where there is one, in bfloat16."
import resource, time
import numpy as np, pytest, torch
from clock import say, seconds
from specnb.learn.align import align
from specnb.learn.pairs import pair
from specnb.models.align import aligned
from specnb.models.encoder import PRESETS, Transformer, encoder
from specnb.physics.survey import simulate
from specnb.spectra.container import Spectra

GPU = torch.cuda.is_available()
DEVICE, DTYPE = ('cuda', torch.bfloat16) if GPU else ('cpu', torch.float32)
BATCH = {k: (512 if GPU else 16) if k.startswith('specclip') and not k.endswith('ae') else 1024 if GPU else 256 for k in PRESETS}
PEAK = 989e12           # dense bfloat16 products a second of an H100 or H200 (NVIDIA's data sheet)


def products(net):
    "(rows a star, inputs, outputs) of every linear layer, and (heads, tokens, width of a head) of every attention"
    linear = [m for m in net.modules() if isinstance(m, torch.nn.Linear)]
    t = net.n_tokens if isinstance(net, Transformer) else 1
    whole = net.summary.modules() if getattr(net, 'summary', None) is not None else ()
    layers = [(1 if any(m is w for w in whole) else t, m.in_features, m.out_features) for m in linear]
    return layers, [(b.attention.heads, t, net.n_features//b.attention.heads) for b in getattr(net, 'blocks', ())]


def flops(net):
    "Floating point operations a star of a training step: forward, and twice that backward"
    layers, looks = products(net)
    return 3*(sum(2*t*a*b for t, a, b in layers) + sum(4*h*t*t*w for h, t, w in looks))


def ideal(net, bs):
    "A function that does the matrix products of a step and nothing else"
    layers, looks = products(net)
    make = lambda *shape: torch.randn(*shape, device=DEVICE, dtype=DTYPE)
    pairs = [(make(bs*t, a), make(a, b), make(bs*t, b)) for t, a, b in layers]
    square = [(make(bs*h, t, w), make(bs*h, t, t)) for h, t, w in looks]
    def run():
        for x, w, y in pairs: x @ w; y @ w.T; x.T @ y
        for q, a in square:
            for _ in range(3): q @ q.mT; a @ q
        if GPU: torch.cuda.synchronize()
    return run


def stepper(net, bs):
    "A function that does a training step"
    flux = 1 + .1*torch.randn(bs, net.grid.n, device=DEVICE)
    ivar, opt = torch.full_like(flux, 2500.), torch.optim.AdamW(net.parameters(), 1e-4, fused=GPU)
    def run():
        with torch.autocast(DEVICE, torch.bfloat16, enabled=GPU): loss = net.loss(flux, ivar > 0, ivar)
        opt.zero_grad()
        loss.backward()
        opt.step()
        if GPU: torch.cuda.synchronize()
    return run


@pytest.mark.parametrize('name', PRESETS)
def bench_step(name):
    net, bs = encoder(name).to(DEVICE).train(), BATCH[name]
    if GPU: net.compile()
    step, bare = stepper(net, bs), ideal(net, bs)
    step(), bare()
    t, least, tokens = seconds(step, 3), seconds(bare, 3), getattr(net, 'n_tokens', 1)
    memory = torch.cuda.max_memory_allocated()/1e9 if GPU else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e6
    say(f'pre-training {name}, {net.n_parameters/1e6:.1f} M, {bs} spectra a batch (tokens/s, stars/s)', f'{bs*tokens/t:,.0f}, {bs/t:,.0f}')
    say('  step over its matrix products alone; operations a second; memory so far', f'{t/least:.2f}; {bs*flops(net)/t/1e12:.3f} T' + (f', {bs*flops(net)/t/PEAK:.2f} of the peak' if GPU else '') + f'; {memory:.1f} GB')


@pytest.mark.parametrize('name', [k for k in PRESETS if k.startswith('small')])
def bench_embed(name):
    net, n = encoder(name).to(DEVICE), 8192
    s = Spectra(1 + .1*np.random.default_rng(0).standard_normal((n, net.grid.n), dtype=np.float32), np.full((n, net.grid.n), 2500, np.float32), net.grid, rest=True)._with(normalised=net.normalise['method'])
    t = seconds(lambda: net.encode(s), 3)
    say(f'embedding {name} (stars/s)', f'{n/t:,.0f}')


def bench_align():
    "20,000 pairs, all decoders: what the encoders make of them is computed on the way"
    stars = simulate('lamost', 20_000, seed=1)
    xp = encoder('small-xp-ae')
    flux = np.repeat(stars.flux[:, ::5][:, :1], xp.grid.n, 1)*(1 + .01*np.random.default_rng(0).standard_normal((len(stars), xp.grid.n), dtype=np.float32))
    other = Spectra(flux, np.full_like(flux, 1e4), xp.grid, stars.table, survey='made up', lsf=xp.lsf, rest=True)._with(normalised=xp.normalise['method'])
    pairs, start = pair(lrs=stars.normalise(width=50.), xp=other), time.monotonic()
    align(aligned('clip-split', dict(lrs=encoder('small-lrs'), xp=xp)), pairs, np.arange(18_000), np.arange(18_000, 20_000), epochs=10, progress=False)
    say('aligning 20,000 pairs, clip-split, 10 epochs (s)', f'{time.monotonic() - start:.0f}')
