"""What CUDA needs beside kernels."""
