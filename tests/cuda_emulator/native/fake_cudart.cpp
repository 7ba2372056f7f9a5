/* Fake CUDA runtime (libcudart): memory, copies, streams, events.
 *
 * Device memory is ordinary host memory, but every allocation is recorded, so
 * that a copy with a wrong direction or a wrong length fails as it would on a
 * GPU. Fresh memory is filled with 0xFF (NaN for floats) to expose reads of
 * uninitialised arrays. What is NOT faithful: the host can read device
 * pointers, and everything finishes before the call returns, so missing
 * synchronisation and stream races go unseen.
 *
 * Functions that CuPy needs and that are not here get a generated stub that
 * prints its name and returns an error (see build.py). */
#include <cuda_runtime_api.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "counters.h"

namespace {

constexpr size_t kDeviceMemory = size_t(8) << 30;
constexpr int kCudaVersion = 13000;
constexpr int kMaxThreadsPerBlock = 1024;
constexpr int kSharedMemoryPerBlock = 48 * 1024;
constexpr int kMultiprocessors = 2;

std::mutex allocations_mutex;
std::map<uintptr_t, size_t> allocations;  // start address -> size
size_t allocated_bytes = 0;

/* Bytes from `pointer` to the end of its device allocation; 0 if it does not
 * point into device memory. */
size_t device_bytes_at(const void *pointer) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
    std::lock_guard<std::mutex> lock(allocations_mutex);
    auto next = allocations.upper_bound(address);
    if (next == allocations.begin()) return 0;
    --next;
    const uintptr_t end = next->first + next->second;
    return address < end ? end - address : 0;
}

bool check_device_range(const char *what, const void *pointer, size_t size) {
    const size_t available = device_bytes_at(pointer);
    if (size <= available) return true;
    if (available == 0) {
        EMULATOR_ERROR("%s: %p is not a device pointer", what, pointer);
    } else {
        EMULATOR_ERROR("%s: %zu bytes requested, the allocation ends after %zu",
                       what, size, available);
    }
    return false;
}

cudaError_t copy(void *target, const void *source, size_t size,
                 cudaMemcpyKind kind) {
    if (size == 0) return cudaSuccess;
    if (kind == cudaMemcpyDefault) {
        const bool from_device = device_bytes_at(source) != 0;
        const bool to_device = device_bytes_at(target) != 0;
        kind = from_device ? (to_device ? cudaMemcpyDeviceToDevice : cudaMemcpyDeviceToHost)
                           : (to_device ? cudaMemcpyHostToDevice : cudaMemcpyHostToHost);
    }
    const bool source_on_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    const bool target_on_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    if (source_on_device && !check_device_range("copy source", source, size)) return cudaErrorInvalidValue;
    if (target_on_device && !check_device_range("copy target", target, size)) return cudaErrorInvalidValue;
    if (kind == cudaMemcpyDeviceToHost) EMULATOR_COUNT(device_to_host);
    if (kind == cudaMemcpyHostToDevice) EMULATOR_COUNT(host_to_device);
    if (kind == cudaMemcpyDeviceToDevice) EMULATOR_COUNT(device_to_device);
    memmove(target, source, size);
    return cudaSuccess;
}

cudaError_t fill(void *target, int value, size_t size) {
    if (size == 0) return cudaSuccess;
    if (!check_device_range("memset", target, size)) return cudaErrorInvalidValue;
    EMULATOR_COUNT(memsets);
    memset(target, value, size);
    return cudaSuccess;
}

struct Event {
    std::chrono::steady_clock::time_point time;
};

/* Streams carry no state; each only needs its own address. */
cudaError_t new_stream(cudaStream_t *stream) {
    *stream = reinterpret_cast<cudaStream_t>(new char);
    return cudaSuccess;
}

cudaError_t new_event(cudaEvent_t *event) {
    *event = reinterpret_cast<cudaEvent_t>(new Event{std::chrono::steady_clock::now()});
    return cudaSuccess;
}

cudaError_t synchronize() {
    EMULATOR_COUNT(synchronizations);
    return cudaSuccess;
}

}  // namespace

extern "C" {

/* ---- errors and versions ---- */

const char *cudaGetErrorName(cudaError_t error) {
    switch (int(error)) {
        case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
        case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
        case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
        case cudaErrorNotSupported: return "cudaErrorNotSupported";
        default: return "cudaErrorUnknown";
    }
}

const char *cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorNotSupported ? "not emulated by the CUDA emulator (its name is on stderr)"
                                          : "error raised by the CUDA emulator";
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaDriverGetVersion(int *version) {
    *version = kCudaVersion;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = kCudaVersion;
    return cudaSuccess;
}

/* ---- one device ---- */

cudaError_t cudaGetDeviceCount(int *count) {
    *count = 1;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}

cudaError_t cudaDeviceSynchronize() { return synchronize(); }

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int) {
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: *value = 8; break;
        case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
        case cudaDevAttrMaxThreadsPerBlock: *value = kMaxThreadsPerBlock; break;
        case cudaDevAttrMultiProcessorCount: *value = kMultiprocessors; break;
        case cudaDevAttrWarpSize: *value = 32; break;
        case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = kSharedMemoryPerBlock; break;
        default: *value = 0;  // a feature that this device does not have
    }
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int) {
    memset(properties, 0, sizeof *properties);
    strcpy(properties->name, "CUDA emulator (CPU)");
    properties->major = 8;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = kMaxThreadsPerBlock;
    properties->multiProcessorCount = kMultiprocessors;
    properties->sharedMemPerBlock = kSharedMemoryPerBlock;
    properties->totalGlobalMem = kDeviceMemory;
    return cudaSuccess;
}

/* ---- memory ---- */

cudaError_t cudaMalloc(void **pointer, size_t size) {
    EMULATOR_COUNT(allocations);
    const size_t rounded = (size + 511) / 512 * 512;
    std::lock_guard<std::mutex> lock(allocations_mutex);
    void *memory = nullptr;
    if (rounded <= kDeviceMemory - allocated_bytes) memory = aligned_alloc(512, rounded);
    if (memory == nullptr) return cudaErrorMemoryAllocation;
    memset(memory, 0xFF, rounded);
    allocations[reinterpret_cast<uintptr_t>(memory)] = rounded;
    allocated_bytes += rounded;
    *pointer = memory;
    return cudaSuccess;
}

cudaError_t cudaFree(void *pointer) {
    if (pointer == nullptr) return cudaSuccess;
    std::lock_guard<std::mutex> lock(allocations_mutex);
    auto found = allocations.find(reinterpret_cast<uintptr_t>(pointer));
    if (found == allocations.end()) {
        EMULATOR_ERROR("cudaFree: %p is not a device allocation", pointer);
        return cudaErrorInvalidValue;
    }
    allocated_bytes -= found->second;
    allocations.erase(found);
    free(pointer);
    return cudaSuccess;
}

cudaError_t cudaMallocAsync(void **pointer, size_t size, cudaStream_t) { return cudaMalloc(pointer, size); }

cudaError_t cudaFreeAsync(void *pointer, cudaStream_t) { return cudaFree(pointer); }

cudaError_t cudaHostAlloc(void **pointer, size_t size, unsigned) {
    *pointer = malloc(size);
    return *pointer ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaFreeHost(void *pointer) {
    free(pointer);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
    std::lock_guard<std::mutex> lock(allocations_mutex);
    *free_bytes = kDeviceMemory - allocated_bytes;
    *total_bytes = kDeviceMemory;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *attributes, const void *pointer) {
    memset(attributes, 0, sizeof *attributes);
    if (device_bytes_at(pointer) != 0) {
        attributes->type = cudaMemoryTypeDevice;
        attributes->devicePointer = const_cast<void *>(pointer);
    } else {
        attributes->type = cudaMemoryTypeUnregistered;
        attributes->device = -2;  // cudaInvalidDeviceId
        attributes->hostPointer = const_cast<void *>(pointer);
    }
    return cudaSuccess;
}

/* ---- copies ---- */

cudaError_t cudaMemcpy(void *target, const void *source, size_t size, cudaMemcpyKind kind) {
    return copy(target, source, size, kind);
}

cudaError_t cudaMemcpyAsync(void *target, const void *source, size_t size, cudaMemcpyKind kind, cudaStream_t) {
    return copy(target, source, size, kind);
}

cudaError_t cudaMemset(void *target, int value, size_t size) { return fill(target, value, size); }

cudaError_t cudaMemsetAsync(void *target, int value, size_t size, cudaStream_t) { return fill(target, value, size); }

/* ---- streams and events: everything is already finished ---- */

cudaError_t cudaStreamCreate(cudaStream_t *stream) { return new_stream(stream); }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) { return new_stream(stream); }

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned, int) { return new_stream(stream); }

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    delete reinterpret_cast<char *>(stream);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) { return synchronize(); }

cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }

cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus *status) {
    *status = cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) { return new_event(event); }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) { return new_event(event); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete reinterpret_cast<Event *>(event);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
    reinterpret_cast<Event *>(event)->time = std::chrono::steady_clock::now();
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }

cudaError_t cudaEventSynchronize(cudaEvent_t) { return synchronize(); }

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    const auto elapsed = reinterpret_cast<Event *>(end)->time - reinterpret_cast<Event *>(start)->time;
    *milliseconds = std::chrono::duration<float, std::milli>(elapsed).count();
    return cudaSuccess;
}

}  // extern "C"
