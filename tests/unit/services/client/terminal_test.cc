#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <sstream>

#include "absl/synchronization/notification.h"
#include "common/base/strings.h"
#include "proto/inference/v1/inference.pb.h"
#include "services/client/chat/conversation.h"
#include "services/client/terminal/interrupts.h"
#include "services/client/terminal/progress_view.h"
#include "services/client/terminal/table.h"
#include "tests/fakes/temp_dir.h"

namespace banyan::client {
namespace {

using ::testing::HasSubstr;

std::string ReadFile(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

TEST(Table, AlignsColumnsWithoutTrailingSpaces) {
  Table table({"name", "p50", ""});
  table.AddRow({"a", "1.25"});
  table.AddRow({"longer", "100.00", "x"});
  EXPECT_EQ(table.ToText(), "name       p50\na         1.25\nlonger  100.00  x\n");
}

TEST(HumanBytes, HasThreeDigits) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(999), "999 B");
  EXPECT_EQ(HumanBytes(1000), "1.0 kB");
  EXPECT_EQ(HumanBytes(17800000), "17.8 MB");
  EXPECT_EQ(HumanBytes(999.6e6), "1.0 GB");
  EXPECT_EQ(HumanBytes(412e9), "412 GB");
}

TEST(HumanSeconds, GrowsWithItsUnits) {
  EXPECT_EQ(HumanSeconds(0.04), "0.0 s");
  EXPECT_EQ(HumanSeconds(9.96), "10 s");
  EXPECT_EQ(HumanSeconds(200), "3 min 20 s");
  EXPECT_EQ(HumanSeconds(3725), "1 h 2 min");
}

class ProgressViewTest : public testing::Test {
 protected:
  std::string Written() {
    std::fflush(out_);
    return ReadFile(temp_.File("out"));
  }
  ~ProgressViewTest() override { std::fclose(out_); }
  const test::TempDir temp_;
  std::FILE* const out_ = std::fopen(temp_.File("out").c_str(), "w");
};

TEST_F(ProgressViewTest, PlainModePrintsALineForEachTenthAndPhase) {
  ProgressView view(out_, /*is_terminal=*/false);
  LoadRow row{"expert 0", "read", 0, 1000, 0, ""};
  for (uint64_t done = 0; done <= 200; ++done) {
    row.bytes_done = done;
    view.Update({row});
  }
  row = {"expert 0", "ready", 1000, 1000, 2.25, ""};
  view.Update({row});
  view.Update({row});
  EXPECT_EQ(Written(),
            "expert 0: read 0 % (0 B of 1.0 kB)\nexpert 0: read 10 % (100 B of 1.0 kB)\n"
            "expert 0: read 20 % (200 B of 1.0 kB)\nexpert 0: ready (1.0 kB in 2.2 s)\n");
}

TEST_F(ProgressViewTest, TerminalModeRedrawsInPlace) {
  ProgressView view(out_, /*is_terminal=*/true);
  view.Update({{"trunk", "wait", 0, 0, 0, "expert shard 1"}});
  view.Update({{"trunk", "ready", 0, 0, 0, ""}});
  view.Say("done");
  EXPECT_EQ(Written(),
            "trunk      wait       expert shard 1\n\x1b[1A\x1b[Jtrunk      ready    \n"
            "\x1b[1A\x1b[Jdone\ntrunk      ready    \n");
}

TEST(ProgressBar, IsCutToTheTerminal) {
  const LoadRow row{"expert 12", "read", 50, 100, 0, std::string(200, 'd')};
  EXPECT_EQ(ProgressView::BarLine(row, 60).size(), 59u);
  EXPECT_THAT(ProgressView::BarLine(row, 200), HasSubstr("[############------------]  50 %"));
}

TEST(ProgressBar, SaysSpeedTimeLeftAndWhatItCosts) {
  LoadRow row{"expert 0", "read", 50, 100, 0, ""};
  row.bytes_per_second = 2e9;
  row.remaining_seconds = 15;
  row.cpus = 1.75;
  row.resident_bytes = 13'000'000'000;
  EXPECT_EQ(
      ProgressView::PlainLine(row),
      "expert 0: read 50 % (50 B of 100 B, 2.0 GB/s, 15 s left, 1.8 CPUs, 13.0 GB of memory)");
  EXPECT_THAT(ProgressView::BarLine(row, 200),
              HasSubstr("50 B of 100 B  2.0 GB/s  15 s left  1.8 CPUs  13.0 GB"));
}

TEST(Interrupts, RunTheInnermostHandler) {
  Interrupts interrupts(/*exit_when_idle=*/false);
  absl::Notification outer;
  const Interrupts::Scope outer_scope(interrupts, [&] { outer.Notify(); });
  {
    absl::Notification inner;
    const Interrupts::Scope scope(interrupts, [&] {
      if (!inner.HasBeenNotified()) inner.Notify();
    });
    kill(getpid(), SIGINT);
    inner.WaitForNotification();
  }
  EXPECT_FALSE(outer.HasBeenNotified());
  kill(getpid(), SIGINT);
  outer.WaitForNotification();
}

TEST(InterruptsDeathTest, EndAnIdleProgramIfAsked) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        Interrupts interrupts(/*exit_when_idle=*/true);
        kill(getpid(), SIGINT);
        for (;;) pause();
      },
      testing::ExitedWithCode(130), "");
}

class ConversationTest : public testing::Test {
 protected:
  std::string LoadError(const std::string& text) {
    std::ofstream(temp_.File("chat.json")) << text;
    return std::string(ToStd(Conversation::Load(temp_.File("chat.json")).status().message()));
  }
  const test::TempDir temp_;
};

TEST_F(ConversationTest, ComesBackFromItsFileAsItWas) {
  Conversation conversation;
  conversation.set_system("Be \"brief\".\n");
  conversation.AddExchange("Grüße?", "日本 \U0001F600");
  conversation.AddExchange("/path", "");
  ASSERT_TRUE(conversation.Save(temp_.File("chat.json")).ok());
  const auto loaded = Conversation::Load(temp_.File("chat.json"));
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  inference::v1::ChatPrompt chat;
  loaded->FillPrompt("next", chat);
  ASSERT_EQ(chat.messages_size(), 6);
  EXPECT_EQ(chat.messages(0).role(), "system");
  EXPECT_EQ(chat.messages(0).content(), "Be \"brief\".\n");
  EXPECT_EQ(chat.messages(2).content(), "日本 \U0001F600");
  EXPECT_EQ(chat.messages(4).role(), "assistant");
  EXPECT_EQ(chat.messages(5).role(), "user");
  EXPECT_EQ(chat.messages(5).content(), "next");
}

TEST_F(ConversationTest, UndoTakesAWholeExchange) {
  Conversation conversation;
  EXPECT_FALSE(conversation.Undo());
  conversation.AddExchange("a", "b");
  EXPECT_TRUE(conversation.Undo());
  EXPECT_TRUE(conversation.messages().empty());
}

TEST_F(ConversationTest, SaysWhatIsNoConversation) {
  EXPECT_THAT(LoadError("[]"), HasSubstr("expected an object with a list \"messages\""));
  EXPECT_THAT(LoadError(R"({"messages": [{"role": "user"}]})"),
              HasSubstr("message 0: expected strings \"role\" and \"content\""));
  EXPECT_THAT(LoadError(R"({"messages": [{"role": "assistant", "content": ""}]})"),
              HasSubstr("message 0: role 'assistant', expected user"));
  EXPECT_THAT(LoadError(R"({"messages": [{"role": "user", "content": ""},
                                         {"role": "system", "content": ""}]})"),
              HasSubstr("message 1: role 'system', expected assistant"));
  EXPECT_THAT(LoadError(R"({"messages": [{"role": "user", "content": ""}]})"),
              HasSubstr("the last message is a question without an answer"));
}

TEST_F(ConversationTest, NamesAFileItCannotWrite) {
  EXPECT_THAT(std::string(ToStd(Conversation().Save("/none/chat.json").message())),
              HasSubstr("cannot write /none/chat.json: No such file or directory"));
}

}  // namespace
}  // namespace banyan::client
