// What a diff says of itself.

#include <gtest/gtest.h>

#include "builder/diff_header.hpp"

namespace molt::builder {
namespace {

using Texts = std::vector<std::string>;

TEST(DiffHeader, OfGit) {
  const DiffHeader header = read_diff_header(
      "From 123 Mon Sep 17 00:00:00 2001\n"
      "From: Jane Doe <jane@example.org>\n"
      "Date: Mon, 2 Feb 2026 10:00:00 +0100\n"
      "Subject: [PATCH 1/2] parse: bound the copy\n"
      " (CVE-2026-1111)\n"
      "\n"
      "As CVE-2025-9999 did. Subject: not this one\n"
      "\n"
      "Signed-off-by: Jane Doe <jane@example.org>\n"
      "signed-off-by: John Roe <john@example.org>\r\n"
      "Signed-off-by:\n"
      "---\n"
      " parse.c | 2 +-\n"
      "\n"
      "diff --git a/parse.c b/parse.c\n"
      "--- a/parse.c\n"
      "+++ b/parse.c\n"
      "@@ -1 +1 @@\n"
      "-Signed-off-by: in the code\n"
      "+Signed-off-by: in the code too\n",
      "0001-parse.patch");
  EXPECT_EQ("parse: bound the copy (CVE-2026-1111)", header.description);
  EXPECT_EQ("Jane Doe <jane@example.org>", header.author);
  EXPECT_EQ((Texts{"Jane Doe <jane@example.org>", "John Roe <john@example.org>"}),
            header.signed_off);
  EXPECT_EQ(Texts{"CVE-2026-1111"}, header.cves);
}

TEST(DiffHeader, OfDebian) {
  const DiffHeader header = read_diff_header(
      "Description: fix the length\n"
      " of everything\n"
      "Author: Jane Doe <jane@example.org>\n"
      "Origin: upstream, CVE-2000-1\n"
      "Last-Update: 2026-01-01\n"
      "\n"
      "--- a/x.c\n+++ b/x.c\n",
      "CVE-2024-46981.patch");
  EXPECT_EQ("fix the length", header.description);
  EXPECT_EQ("Jane Doe <jane@example.org>", header.author);
  EXPECT_EQ(Texts{"CVE-2024-46981"}, header.cves);
  EXPECT_TRUE(header.signed_off.empty());
}

TEST(DiffHeader, OfNothing) {
  const DiffHeader header =
      read_diff_header("--- a/x.c\n+++ b/x.c\n+Author: none\n", "CVE-20-1.patch");
  EXPECT_EQ("", header.description + header.author);
  EXPECT_TRUE(header.cves.empty());
  EXPECT_EQ("", read_diff_header("", "").author);
}

// It goes to terminals and into a list of texts that end with a NUL.
TEST(DiffHeader, HasNoControlCharacters) {
  const DiffHeader header = read_diff_header(
      std::string("Author: J\0\033[2Jane\nSubject: ", 27) + std::string(5000, 'x') + "\n", "");
  EXPECT_EQ("J  [2Jane", header.author);
  EXPECT_EQ(std::string(400, 'x'), header.description);
}

}  // namespace
}  // namespace molt::builder
