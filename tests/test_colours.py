"Networks that read colours: any coarse grid, any unit, committees, what makes a run its own."
import numpy as np, pytest, torch
from astropy.table import Table
from specnb.apps.train import train_stars
from specnb.learn.library import in_study
from specnb.learn.pretrain import pretrain
from specnb.learn.train import label_error
from specnb.learn.transfer import transfer
from specnb.models.adapt import join
from specnb.models.mlp import MLP, together
from specnb.spectra.container import Spectra
from specnb.spectra.gaia import XP_GRID, XP_LSF
from specnb.spectra.grid import Grid, LSF

SMALL = dict(smooth=True, arcsinh=True, basis=8, hidden=[16, 8], dropout=0., normalise=dict(method='reference'), errors=True)


def stars(n=300, grid=XP_GRID, lsf=XP_LSF, seed=0, scale=1.):
    "Black bodies with an edge that deepens with metallicity: simulated"
    rng = np.random.default_rng(seed)
    t, z = rng.uniform(4000, 7000, n), rng.uniform(-2, .5, n)
    w = grid.wavelength
    flux = 1e3*(w/5500)**-5*(np.exp(1.4388e8/5500/t[:, None]) - 1)/(np.exp(1.4388e8/w/t[:, None]) - 1)*(1 - .1*(z[:, None] + 2)*(w < 5200))
    err = .01*flux.mean(1, keepdims=True)*np.ones_like(flux)
    table = Table(dict(target_id=[f's{seed}-{i}' for i in range(n)], teff=t, fe_h=z, rv=np.zeros(n)))
    return Spectra((flux + err*rng.normal(size=flux.shape))*scale, 1/(err*scale)**2, grid, table, survey='invented', lsf=lsf, rest=True)


def network(members=1, seed=0, **change):
    torch.manual_seed(seed)
    m = MLP(**{**dict(labels=['teff', 'fe_h'], grid=XP_GRID.id, lsf=XP_LSF.to_dict(), mean=[5500., -.7], std=[900., .7], members=members), **SMALL, **change})
    m.learn_inputs(stars())
    return m.eval()


@pytest.mark.parametrize('grid', [Grid.linear(4000, 40, 130), Grid.linear(4000, 15, 300), XP_GRID])
def test_any_coarse_grid(grid):
    "Gaia's bands are blinded on Gaia's samples only"
    model, table = train_stars(stars(400, grid, LSF.R(80)), ['teff', 'fe_h'], epochs=6, members=1, progress=False)
    assert np.isfinite(table['sigma']).all() and table['sigma'][table['label'] == 'teff'][0] < 700 and model.n_basis <= 100


def test_a_grid_without_the_reference_is_refused():
    far = stars(300, Grid.linear(9000, 40, 130), LSF.R(80))
    with pytest.raises(ValueError, match='do the spectra cover the wavelengths'): train_stars(far, ['teff', 'fe_h'], epochs=1, progress=False)


@pytest.mark.parametrize('scale', [1e-19, 1e-3, 1e5])
def test_units_do_not_matter(scale):
    m = network()
    assert np.allclose(m.predict(stars(20))[0], m.predict(stars(20, scale=scale))[0], rtol=1e-3, atol=1e-2)


def test_errors_survive_joining():
    a, b = network(seed=0), network(seed=1)
    for k, m in enumerate((a, b)): m.refine.copy_(torch.tensor([[.1, .2], [.3, .4], [.05, .06]])*(k + 1))
    c, s = join([a, b], [0, 1]), stars(30)
    y, e = c.predict(s)
    for j, m in enumerate((a, b)): assert np.allclose(y[:, j], m.predict(s)[0][:, j], rtol=1e-4) and np.allclose(e[:, j], m.predict(s)[1][:, j], rtol=1e-3)


def test_from_scratch_looks_at_inputs_as_before():
    new = transfer(network(), stars(200, seed=2), 'scratch', steps=200, progress=False)
    assert torch.equal(new.basis, network().basis) and np.std(new.predict(stars(50, seed=3))[0][:, 0]) > 20


def test_committees_are_adapted_as_a_whole():
    m, target = network(members=3), stars(200, seed=2)
    new = transfer(m, target, 'full', steps=20, progress=False)
    assert new.members == 3 and np.isfinite(new.predict(target)[0]).all()
    for k in ('lora', 'auto'):
        with pytest.raises(ValueError, match='a committee of 3 has no strategy'): transfer(m, target, k, progress=False)
    with pytest.raises(ValueError, match='cannot be joined'): join([m, network(members=3, seed=1)], [0, 1])


def test_a_mixture_far_from_zero():
    out = torch.tensor([[[300., -8.]], [[300.01, -8.]]])
    assert torch.isfinite(together(out)).all()


def test_stars_without_labels_have_no_error(): assert label_error(torch.ones(3, 4), torch.full((3, 2), torch.nan)).item() == 0


def test_another_run_is_no_resume(tmp_path):
    s, m = stars(120), network(members=2)
    first, again = m.copy(), m.copy()
    run = lambda model, **k: pretrain(model, s, np.arange(80), np.arange(80, 120), 2, checkpoint=tmp_path/'body.safetensors', progress=False, **k)
    a = run(first, seed=0)
    b = run(again, seed=1)
    assert a['train'][0] != b['train'][0]


def test_a_star_of_unknown_temperature_is_in_no_study():
    from specnb.learn.library import _quality
    t = Table(dict(source_id=[1, 2], teff=[np.nan, 5000.], snr_apogee=[100., np.nan], fe_h=[0., 0.], alpha_m=[0., 0.], ak=[0., 0.]))
    t['quality'] = _quality(t, np.ones((2, 3)))
    assert not in_study(t).any()
