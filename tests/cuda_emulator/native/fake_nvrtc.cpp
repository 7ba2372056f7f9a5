/* Fake NVRTC: "compiles" CUDA C++ to a host shared library with g++.
 *
 * The work is done by compile_kernel.py; the "cubin" handed back is the name
 * (content hash) of the library in the kernel cache. g++ accepts some code
 * that the real compiler refuses: `python tests/cuda_emulator nvrtc` checks the
 * same sources with the real one. */
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

#include "counters.h"

extern char **environ;

namespace {

enum : int { kSuccess = 0, kCompilationFailed = 6, kInternalError = 11 };

struct Program {
    std::string source;
    std::string cubin;
    std::string log;
};

std::string read_file(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
}

std::string environment(const char *name) {
    const char *value = getenv(name);
    return value ? value : "";
}

/* Runs `python compile_kernel.py folder`; returns its exit status. */
int run_compiler(const std::string &folder) {
    std::string python = environment("CUDA_EMULATOR_PYTHON");
    std::string script = environment("CUDA_EMULATOR_COMPILER");
    std::string argument = folder;
    char isolated[] = "-ISB";
    char *arguments[] = {&python[0], isolated, &script[0], &argument[0], nullptr};
    pid_t child;
    if (posix_spawn(&child, python.c_str(), nullptr, nullptr, arguments, environ) != 0) return -1;
    int status;
    if (waitpid(child, &status, 0) != child || !WIFEXITED(status)) return -1;
    return WEXITSTATUS(status);
}

}  // namespace

extern "C" {

const char *nvrtcGetErrorString(int error) {
    return error == kCompilationFailed ? "NVRTC_ERROR_COMPILATION" : "NVRTC_ERROR_INTERNAL_ERROR";
}

int nvrtcVersion(int *major, int *minor) {
    *major = 13;
    *minor = 0;
    return kSuccess;
}

int nvrtcGetNumSupportedArchs(int *count) {
    *count = 1;
    return kSuccess;
}

int nvrtcGetSupportedArchs(int *architectures) {
    *architectures = 80;
    return kSuccess;
}

int nvrtcCreateProgram(void **program, const char *source, const char *, int header_count, const char *const *,
                       const char *const *) {
    if (header_count != 0) {
        EMULATOR_ERROR("nvrtcCreateProgram with in-memory headers is not emulated");
        return kInternalError;
    }
    *program = new Program{source, "", ""};
    return kSuccess;
}

int nvrtcDestroyProgram(void **program) {
    delete static_cast<Program *>(*program);
    *program = nullptr;
    return kSuccess;
}

int nvrtcCompileProgram(void *handle, int option_count, const char *const *options) {
    Program *program = static_cast<Program *>(handle);
    std::string folder = environment("CUDA_EMULATOR_KERNELS") + "/request-XXXXXX";
    if (mkdtemp(&folder[0]) == nullptr) {
        EMULATOR_ERROR("cannot create %s: run inside `python tests/cuda_emulator run`", folder.c_str());
        return kInternalError;
    }
    std::ofstream(folder + "/source.cu", std::ios::binary) << program->source;
    {
        std::ofstream option_file(folder + "/options");
        for (int i = 0; i < option_count; i++) option_file << options[i] << '\n';
    }
    const int status = run_compiler(folder);
    program->log = read_file(folder + "/log");
    program->cubin = read_file(folder + "/key");
    for (const char *name : {"source.cu", "options", "log", "key"}) unlink((folder + "/" + name).c_str());
    rmdir(folder.c_str());
    if (status == 0) return kSuccess;
    if (program->log.empty()) EMULATOR_ERROR("the kernel compiler could not be run");
    return kCompilationFailed;
}

int nvrtcGetCUBINSize(void *program, size_t *size) {
    *size = static_cast<Program *>(program)->cubin.size() + 1;
    return kSuccess;
}

int nvrtcGetCUBIN(void *program, char *target) {
    strcpy(target, static_cast<Program *>(program)->cubin.c_str());
    return kSuccess;
}

int nvrtcGetPTXSize(void *program, size_t *size) { return nvrtcGetCUBINSize(program, size); }

int nvrtcGetPTX(void *program, char *target) { return nvrtcGetCUBIN(program, target); }

int nvrtcGetProgramLogSize(void *program, size_t *size) {
    *size = static_cast<Program *>(program)->log.size() + 1;
    return kSuccess;
}

int nvrtcGetProgramLog(void *program, char *target) {
    strcpy(target, static_cast<Program *>(program)->log.c_str());
    return kSuccess;
}

}  // extern "C"
