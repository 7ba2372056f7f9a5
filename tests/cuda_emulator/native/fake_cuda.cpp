/* Fake CUDA driver (libcuda): loads compiled kernels and runs them on the CPU.
 *
 * A "cubin" made by the fake NVRTC is the name of a shared library in the
 * kernel cache. Launching a kernel calls its entry function, which loops over
 * the grid (kernel_prelude.h). Blocks run one after another. Kernels without
 * barriers run their threads one after another; kernels with barriers run each
 * thread as a fiber, switched at __syncthreads(), __syncwarp() and warp
 * shuffles. A barrier that not all threads reach is reported as an error.
 * NOT faithful: only one order of execution is tried, so data races and
 * missing barriers between warps can go unseen. */
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include "block_scheduler.h"
#include "counters.h"

namespace {

enum : int {
    kSuccess = 0,
    kInvalidValue = 1,
    kInvalidImage = 200,
    kNotFound = 500,
    kLaunchFailed = 719,
};
constexpr unsigned kMaxThreadsPerBlock = 1024;
constexpr unsigned kMaxSharedBytes = 48 * 1024;
constexpr unsigned kWarpSize = 32;
constexpr size_t kFiberStackBytes = 64 * 1024;

void *const kContext = reinterpret_cast<void *>(16);  // any non-null address

/* ---- block scheduler ---- */

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct Fiber {
    ucontext_t first_entry;
    jmp_buf resume_point;
    bool started = false;
    State state = State::kReady;
    unsigned warp_mask = 0;
    unsigned long long slot = 0;  // value offered to other threads
};

std::mutex launch_mutex;  // one kernel at a time
std::vector<Fiber> fibers;
jmp_buf scheduler_point;
ucontext_t scheduler_context;
unsigned current = 0;
unsigned thread_count = 0;
bool cooperative = false;
void (*thread_body)(void *);
void *thread_argument;

/* Leaves the current fiber. setjmp/longjmp is used for all switches but the
 * first because, unlike swapcontext, it makes no system call. */
void yield_to_scheduler(State state) {
    Fiber &fiber = fibers[current];
    fiber.state = state;
    if (_setjmp(fiber.resume_point) == 0) _longjmp(scheduler_point, 1);
}

/* A fiber is kept for the life of the process and runs one thread after
 * another. */
void fiber_main() {
    for (;;) {
        thread_body(thread_argument);
        yield_to_scheduler(State::kDone);
    }
}

void create_fibers(unsigned count) {
    if (fibers.size() >= count) return;
    fibers = std::vector<Fiber>(kMaxThreadsPerBlock);
    char *stacks = static_cast<char *>(mmap(nullptr, kMaxThreadsPerBlock * kFiberStackBytes, PROT_READ | PROT_WRITE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (stacks == MAP_FAILED) {
        EMULATOR_ERROR("cannot reserve stacks for the threads of a block");
        abort();
    }
    for (unsigned i = 0; i < kMaxThreadsPerBlock; i++) {
        getcontext(&fibers[i].first_entry);
        fibers[i].first_entry.uc_stack.ss_sp = stacks + i * kFiberStackBytes;
        fibers[i].first_entry.uc_stack.ss_size = kFiberStackBytes;
        fibers[i].first_entry.uc_link = &scheduler_context;
        makecontext(&fibers[i].first_entry, fiber_main, 0);
    }
}

void resume(Fiber &fiber) {
    if (_setjmp(scheduler_point) != 0) return;
    if (fiber.started) _longjmp(fiber.resume_point, 1);
    fiber.started = true;
    setcontext(&fiber.first_entry);
}

bool warp_barrier_reached(unsigned thread) {
    const unsigned warp_start = thread / kWarpSize * kWarpSize;
    const unsigned mask = fibers[thread].warp_mask;
    for (unsigned lane = 0; lane < kWarpSize && warp_start + lane < thread_count; lane++) {
        if (!(mask >> lane & 1)) continue;
        const Fiber &other = fibers[warp_start + lane];
        if (other.state == State::kDone) continue;
        if (other.state != State::kAtWarpBarrier || other.warp_mask != mask) return false;
    }
    return true;
}

/* Frees the threads whose barrier is complete; returns how many. */
unsigned release_barriers() {
    unsigned released = 0;
    bool block_complete = true;
    for (unsigned i = 0; i < thread_count; i++) {
        const State state = fibers[i].state;
        if (state != State::kAtBlockBarrier && state != State::kDone) block_complete = false;
    }
    std::vector<unsigned> ready;
    for (unsigned i = 0; i < thread_count; i++) {
        const bool in_block_barrier = fibers[i].state == State::kAtBlockBarrier && block_complete;
        const bool in_warp_barrier = fibers[i].state == State::kAtWarpBarrier && warp_barrier_reached(i);
        if (in_block_barrier || in_warp_barrier) ready.push_back(i);
    }
    for (unsigned i : ready) {
        fibers[i].state = State::kReady;
        released++;
    }
    return released;
}

}  // namespace

extern "C" {

/* ---- called by the compiled kernels (see block_scheduler.h) ---- */

int emulator_run_block(unsigned threads, void (*select_thread)(unsigned), void (*body)(void *), void *argument) {
    create_fibers(threads);
    thread_count = threads;
    thread_body = body;
    thread_argument = argument;
    for (unsigned i = 0; i < threads; i++) fibers[i].state = State::kReady;
    cooperative = true;
    unsigned remaining = threads;
    while (remaining > 0) {
        for (unsigned i = 0; i < threads; i++) {
            if (fibers[i].state != State::kReady) continue;
            current = i;
            select_thread(i);
            resume(fibers[i]);
            if (fibers[i].state == State::kDone) remaining--;
        }
        if (remaining > 0 && release_barriers() == 0) {
            EMULATOR_ERROR("%u threads of a block wait at a barrier that the others never reach", remaining);
            fibers.clear();  // the stuck threads are abandoned
            cooperative = false;
            return kLaunchFailed;
        }
    }
    cooperative = false;
    return kSuccess;
}

static void require_fibers(const char *what) {
    if (cooperative) return;
    EMULATOR_ERROR("%s in a kernel whose own source names no barrier: cannot run", what);
    abort();
}

void emulator_block_barrier(void) {
    require_fibers("block barrier");
    yield_to_scheduler(State::kAtBlockBarrier);
}

void emulator_warp_barrier(unsigned mask) {
    require_fibers("warp barrier");
    fibers[current].warp_mask = mask;
    yield_to_scheduler(State::kAtWarpBarrier);
}

void emulator_offer(unsigned long long value) {
    require_fibers("warp or block exchange");
    fibers[current].slot = value;
}

unsigned long long emulator_offered(unsigned thread) { return fibers[thread].slot; }

unsigned emulator_thread(void) { return current; }

unsigned emulator_thread_count(void) { return thread_count; }

int emulator_thread_done(unsigned thread) { return fibers[thread].state == State::kDone; }

/* ---- start-up, contexts ---- */

int cuInit(unsigned) { return kSuccess; }

int cuGetErrorName(int error, const char **name) {
    switch (error) {
        case kInvalidValue: *name = "CUDA_ERROR_INVALID_VALUE"; break;
        case kInvalidImage: *name = "CUDA_ERROR_INVALID_IMAGE"; break;
        case kNotFound: *name = "CUDA_ERROR_NOT_FOUND"; break;
        case kLaunchFailed: *name = "CUDA_ERROR_LAUNCH_FAILED"; break;
        default: *name = "CUDA_ERROR_NOT_SUPPORTED";
    }
    return kSuccess;
}

int cuGetErrorString(int, const char **text) {
    *text = "reported by the CUDA emulator (details on stderr)";
    return kSuccess;
}

int cuCtxGetCurrent(void **context) {
    *context = kContext;
    return kSuccess;
}

int cuCtxSetCurrent(void *) { return kSuccess; }

int cuCtxGetDevice(int *device) {
    *device = 0;
    return kSuccess;
}

int cuStreamGetCtx(void *, void **context) {
    *context = kContext;
    return kSuccess;
}

int cuDevicePrimaryCtxRelease_v2(int) { return kSuccess; }

/* ---- modules ---- */

int cuModuleLoadData(void **module, const void *image) {
    const char *folder = getenv("CUDA_EMULATOR_KERNELS");
    const std::string path = std::string(folder ? folder : ".") + "/" + static_cast<const char *>(image) + ".so";
    *module = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (*module) {
        utimensat(AT_FDCWD, path.c_str(), nullptr, 0);  // its time says that this run used it: see nvrtc.py
        return kSuccess;
    }
    EMULATOR_ERROR("cannot load a kernel: %s", dlerror());
    return kInvalidImage;
}

int cuModuleUnload(void *) { return kSuccess; }

int cuModuleGetFunction(void **function, void *module, const char *name) {
    *function = dlsym(module, (std::string("emulator_entry_") + name).c_str());
    return *function ? kSuccess : kNotFound;
}

int cuModuleGetGlobal_v2(void **pointer, size_t *size, void *module, const char *name) {
    *pointer = dlsym(module, name);
    if (*pointer == nullptr) return kNotFound;
    Dl_info info;
    const ElfW(Sym) *symbol = nullptr;
    dladdr1(*pointer, &info, reinterpret_cast<void **>(const_cast<ElfW(Sym) **>(&symbol)), RTLD_DL_SYMENT);
    *size = symbol ? symbol->st_size : 0;
    return kSuccess;
}

/* ---- launches ---- */

int cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared_bytes, void *, void **arguments, void **) {
    const unsigned long long threads = 1ull * block_x * block_y * block_z;
    if (threads == 0 || threads > kMaxThreadsPerBlock || shared_bytes > kMaxSharedBytes) {
        EMULATOR_ERROR("launch refused: %llu threads per block, %u bytes of shared memory", threads, shared_bytes);
        return kInvalidValue;
    }
    if (grid_x == 0 || grid_y == 0 || grid_z == 0 || grid_y > 65535 || grid_z > 65535) {
        EMULATOR_ERROR("launch refused: grid %u x %u x %u", grid_x, grid_y, grid_z);
        return kInvalidValue;
    }
    EMULATOR_COUNT(kernel_launches);
    const unsigned dimensions[6] = {grid_x, grid_y, grid_z, block_x, block_y, block_z};
    std::lock_guard<std::mutex> lock(launch_mutex);
    return reinterpret_cast<int (*)(const unsigned *, void **)>(function)(dimensions, arguments);
}

int cuFuncGetAttribute(int *value, int attribute, void *) {
    const int kMaxThreadsAttribute = 0;
    *value = attribute == kMaxThreadsAttribute ? int(kMaxThreadsPerBlock) : 0;
    return kSuccess;
}

int cuFuncSetAttribute(void *, int, int) { return kSuccess; }

int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *, int, size_t) {
    *blocks = 1;
    return kSuccess;
}

int cuOccupancyMaxPotentialBlockSize(int *grid, int *block, void *, void *, size_t, int) {
    *grid = 1;
    *block = 128;
    return kSuccess;
}

}  // extern "C"
