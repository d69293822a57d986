"""First words of questions: what a small target asks by itself is of few kinds."""

from __future__ import annotations

OPENINGS = (
    "Write a", "Write a short story about", "Write an email to", "Write a poem about", "Write a Python function that",
    "Write a program", "Write a review of", "Write a persuasive", "Implement", "Create a", "Design a", "Draft a", "Compose a",
    "Describe", "Explain", "Explain the difference between", "Explain why", "How does", "How do I", "How many", "How can",
    "What is", "What are the", "What would happen if", "What are some", "Why do", "Why is", "Who was", "When did", "Where",
    "Which", "Can you", "Could you", "Give me", "Give three examples of", "List", "Name", "Compare", "Discuss", "Analyze",
    "Evaluate", "Summarize the following text:", "Rewrite the following sentence:", "Translate", "Classify the following",
    "Extract the", "Identify", "Correct the", "Edit", "Solve", "Calculate", "Find the", "If", "Suppose", "Given", "Consider",
    "A", "The", "In", "There are", "Imagine you are", "Pretend to be", "You are a", "Act as a", "Please", "Help me",
    "Tell me", "I", "I want to", "My", "Let's", "Should", "Is it", "Do you", "Provide", "Suggest", "Recommend", "Plan",
    "Outline", "Develop", "Read the following passage:", "Complete the", "Generate", "Define", "Prove that", "Use", "Make",
    "Convert", "Count", "Arrange", "Determine", "Choose", "Debate", "Teach me",
)  # fmt: skip
