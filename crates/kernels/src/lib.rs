//! CPU kernels of Aquatint: slices and strides, SIMD, threads.
