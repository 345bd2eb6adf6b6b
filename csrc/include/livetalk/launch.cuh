// A kernel launch as a function call, so that tests can run the same launchers on a CPU.
#pragma once

#ifdef __CUDACC__
namespace livetalk::cuda {

template <class Args>
void launch(void (*kernel)(Args), dim3 grid, int threads, cudaStream_t stream, const Args& args) {
  kernel<<<grid, threads, 0, stream>>>(args);
}

}  // namespace livetalk::cuda
#endif
