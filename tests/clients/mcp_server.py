"""A small MCP server over standard input and output, with one tool.

Usage: mcp_server.py LOG. Every call is a line of JSON in LOG, so that a test can see what came.
"""
import json
import sys

from mcp.server.fastmcp import FastMCP

import demo_tools

server = FastMCP("weather")


@server.tool(description=demo_tools.WEATHER_TOOL["function"]["description"])
def get_weather(city: str) -> str:
    with open(sys.argv[1], "a", encoding="utf-8") as log:
        log.write(json.dumps({"city": city}) + "\n")
    return demo_tools.get_weather(city)


if __name__ == "__main__":
    server.run("stdio")
