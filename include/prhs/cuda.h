/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file cuda.h
 * Interop: libprhs on the engine's own CUDA context, streams and memory. It needs no CUDA headers: a CUcontext and a CUstream
 * (or cudaStream_t, which is the same) are passed as void *, a CUdeviceptr (or a pointer from cudaMalloc) as uint64_t. The library
 * does not link with CUDA: it opens libcuda.so.1 at run time. A layer's keys may reach over 64 GiB, and so may its values: whatever attends
 * to more ends with PRHS_ERR_UNSUPPORTED.
 */
#ifndef PRHS_CUDA_H
#define PRHS_CUDA_H

#include <prhs/device.h>

PRHS_EXTERN_C_BEGIN

/** How to open a device that the engine uses already. Start from PRHS_CUDA_PARAMS_INIT. */
typedef struct prhs_cuda_params {
    size_t size;         /**< sizeof(prhs_cuda_params) */
    int device;          /**< CUDA's ordinal; read where `context` is NULL */
    void *context;       /**< CUcontext; must stay alive until the prhs_device is closed. NULL: the device's primary context, the one of
                              the CUDA runtime and of the frameworks above it; retained while the prhs_device lives */
    uint32_t caps_mask;  /**< capabilities that may be used; PRHS_CAPS_ALL. PRHS_CAPS in the environment takes away more */
    const char *tuning;  /**< as in prhs_device_params */
} prhs_cuda_params;
#define PRHS_CUDA_PARAMS_INIT { sizeof(prhs_cuda_params), 0, NULL, PRHS_CAPS_ALL, NULL }

/**
 * Opens the engine's device; close it with prhs_device_close(). `log` is copied, NULL is silence. Whatever context is current on the
 * calling thread stays so, here and in all other calls. Thread-safe.
 * PRHS_ERR_ARGUMENT: params or device NULL, params->size unknown; the tuning file as in prhs_device_open(). PRHS_ERR_NO_DEVICE: this
 * machine has no usable libcuda.so.1, or no such ordinal. PRHS_ERR_UNSUPPORTED: compute capability below 8.0. PRHS_ERR_DRIVER:
 * `context` is none. PRHS_ERR_MEMORY.
 */
PRHS_API prhs_status prhs_cuda_device_open(const prhs_cuda_params *params, const prhs_log *log, prhs_device **device);

/**
 * Makes a prhs_queue of the engine's stream, which must stay alive until prhs_queue_destroy() (that waits for the stream's work, as
 * for any queue, and leaves the stream to the engine). NULL is the legacy default stream, as in CUDA; it cannot be captured. Work of the
 * engine and of libprhs on the stream runs in the order of the calls; a stream under capture takes the library's work into its graph
 * (see prhs_cuda_graph_begin for which calls). It makes some small executable graphs and loads a kernel: wrap a stream once, not once
 * a step, and not while anything is captured. Thread-safe.
 * PRHS_ERR_ARGUMENT: device or queue NULL, a device of another backend, a stream of another context. PRHS_ERR_DRIVER, PRHS_ERR_MEMORY.
 */
PRHS_API prhs_status prhs_cuda_queue_wrap(prhs_device *device, void *stream, prhs_queue **queue);

/**
 * Makes a prhs_buffer of `size` bytes of the engine's memory at `pointer`, which must stay allocated until prhs_buffer_destroy(); the
 * size is the engine's word. Any memory that kernels of the device may read and write: from cuMemAlloc, a pool, mapped memory,
 * managed memory. Offsets of prhs_mem count from `pointer`. Thread-safe.
 * PRHS_ERR_ARGUMENT: NULL, a device of another backend, size 0, `pointer` not a multiple of 16, not known to the driver, of another
 * device or another context. PRHS_ERR_DRIVER, PRHS_ERR_MEMORY.
 */
PRHS_API prhs_status prhs_cuda_buffer_wrap(prhs_device *device, uint64_t pointer, size_t size, prhs_buffer **buffer);

/**
 * What is behind a handle, also of handles that libprhs made itself; it lives as long as the handle. -1, NULL or 0 for NULL and for
 * handles of another backend. Thread-safe.
 */
PRHS_API int prhs_cuda_device(const prhs_device *device);         /**< the ordinal */
PRHS_API void *prhs_cuda_context(const prhs_device *device);      /**< CUcontext */
PRHS_API void *prhs_cuda_stream(const prhs_queue *queue);         /**< CUstream; NULL also for the legacy default stream */
PRHS_API uint64_t prhs_cuda_pointer(const prhs_buffer *buffer);   /**< CUdeviceptr */

/** A recorded piece of a queue's work. Thread-safety: one thread at a time. */
typedef struct prhs_cuda_graph prhs_cuda_graph;

/**
 * Records instead of running: what is enqueued on `queue` from here to prhs_cuda_graph_end() by steps, ops and transfers goes into a
 * graph. One decode step recorded once serves every later one: lengths, positions, page tables and slots are device data. An engine
 * with graphs of its own captures its stream itself. Recorded must not be: creating and destroying objects, prhs_queue_finish(), event
 * queries, prhs_session_poll(), statistics. Host memory of recorded transfers is read and written at every launch.
 * PRHS_ERR_ARGUMENT: NULL or another backend. PRHS_ERR_STATE: the stream is being captured, or cannot be. PRHS_ERR_DRIVER.
 */
PRHS_API prhs_status prhs_cuda_graph_begin(prhs_queue *queue);

/**
 * Ends the recording and makes it ready to be launched; the caller owns the graph. It needs the recorded buffers, sessions and the
 * device as long as it is launched. Where it fails, the recording is over all the same, and *graph is NULL.
 * PRHS_ERR_ARGUMENT: NULL or another backend. PRHS_ERR_STATE: nothing is being recorded, or a call in between spoilt it.
 * PRHS_ERR_DRIVER, PRHS_ERR_MEMORY.
 */
PRHS_API prhs_status prhs_cuda_graph_end(prhs_queue *queue, prhs_cuda_graph **graph);

/** Enqueues a graph on any queue of its device; prhs_counters do not see it. PRHS_ERR_ARGUMENT: NULL or another device. PRHS_ERR_DRIVER. */
PRHS_API prhs_status prhs_cuda_graph_launch(prhs_cuda_graph *graph, prhs_queue *queue);

/**
 * Destroys a graph; NULL is allowed. Launches that are under way end as usual. Not while the calling thread records on a queue of the device:
 * the driver refuses it, and the recording is spoilt.
 */
PRHS_API void prhs_cuda_graph_destroy(prhs_cuda_graph *graph);

PRHS_EXTERN_C_END

#endif
