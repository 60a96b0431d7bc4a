"""Populations of particles: along paths of energies (`schedule`, `tuning`, `population`), down
levels of noise (`noise_path`, `diffusion`, `diffusion_tuning`) and along orderings (`sequential`);
their resampling; the search for a schedule (`search`, `discrete`), and its starts (`starts`,
`gaussians`, `triangular`).
It may use `mcmc`, `diagnostics`, `kernels`, `io`, `spaces` and `algebra`."""
