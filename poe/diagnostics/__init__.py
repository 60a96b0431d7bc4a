"""What methods return and how it is judged: raw draws, convergence, weights, the Stein test, the
verdict. Imports algebra, spaces, io and plotting."""
