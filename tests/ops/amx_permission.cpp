// Whether avx512amx is offered where Linux grants or denies tiles. The processor's part of the
// question is answered with yes (VQVAE_FAST_TEST_PROCESSOR_HAS_TILES), so any processor with
// AVX-512 VNNI can run this; nothing is searched.
//
//   amx_permission ERRNO...
//
// Answers the process' requests for tiles with these error numbers, one after the other, where 0
// grants them. Each is followed by a look at the instruction sets, in several threads at once,
// which prints 1 if avx512amx is among them in all, 0 if in none.
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/cpu/dispatch.h"

namespace {

// From now on arch_prctl(ARCH_REQ_XCOMP_PERM) returns this error without asking the kernel.
bool answer_requests_with(int error) {
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_arch_prctl, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[0])),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0x1023, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | unsigned(error)),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{sizeof code / sizeof code[0], code};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (!answer_requests_with(std::atoi(argv[i]))) {
      std::perror("seccomp");
      return 77;
    }
    constexpr int kThreads = 8;
    int has[kThreads] = {};
    std::vector<std::thread> threads;
    for (int& mine : has) {
      threads.emplace_back([&mine] {
        for (const auto* set : vqvae_fast::available_instruction_sets()) {
          mine += std::string(set->name) == "avx512amx";
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const int of_thread : has) {
      if (of_thread != has[0]) return 1;
    }
    std::printf("%d ", has[0]);
  }
  std::printf("\n");
  return 0;
}
