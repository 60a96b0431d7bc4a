"""Populations of particles: along paths of energies (`schedule`, `tuning`, `population`), down
levels of noise (`noise_path`, `diffusion`, `diffusion_tuning`) and along orderings (`sequential`);
their resampling, and the starts that are fitted to a target (`starts`, `gaussians`, `triangular`).
It may use `mcmc`, `diagnostics`, `kernels`, `io`, `spaces` and `algebra`."""
