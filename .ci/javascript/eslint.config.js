// What the dashboard's modules keep to, beside their types (tsconfig.json) and their format (prettier.json).
import js from "@eslint/js";
import globals from "globals";

// properties of window that a forgotten `const` or a misspelt parameter would read
const CONFUSING = ["event", "name", "status", "length", "parent", "top", "self", "open", "close", "find", "stop"];
// prompts are hostile input: text becomes a node by `textContent` or `append`
const MARKUP = ["innerHTML", "outerHTML", "insertAdjacentHTML", "setHTMLUnsafe"];

export default [
  js.configs.recommended,
  {
    files: ["**/*.js"],
    languageOptions: { ecmaVersion: 2024, sourceType: "module", globals: globals.browser },
    linterOptions: { reportUnusedDisableDirectives: "error" },
    rules: {
      "array-callback-return": "error",
      curly: ["error", "multi-line"],
      "default-case-last": "error",
      eqeqeq: "error",
      "max-lines": ["error", 400],
      "max-lines-per-function": ["error", 60],
      "no-alert": "error",
      "no-console": "error",
      "no-else-return": "error",
      "no-eval": "error",
      "no-implicit-coercion": "error",
      "no-implicit-globals": "error",
      "no-implied-eval": "error",
      "no-new-func": "error",
      "no-param-reassign": "error",
      "no-restricted-globals": ["error", ...CONFUSING],
      "no-restricted-properties": [
        "error",
        ...MARKUP.map((property) => ({ property, message: "Use textContent or append: a prompt may hold markup." })),
      ],
      "no-shadow": "error",
      "no-throw-literal": "error",
      "no-unused-vars": "error",
      "no-useless-rename": "error",
      "no-var": "error",
      "object-shorthand": "error",
      "prefer-const": "error",
      "prefer-template": "error",
    },
  },
];
